"""`lfm-convert release [RECIPE]`: all artifacts of a recipe, each converted and compared if it is not yet."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...graph.errors import UsageError
from ...graph.streams import write_out
from ...graph.units import format_size
from ...validate.tables import print_rows
from ..recipe.reading import load_recipe
from ..source import SETTINGS_FILE
from .console import Json, Offline, output, print_json, watched
from .report_options import Html, Junit, Markdown

if TYPE_CHECKING:
    from ..release.forecast import Forecasts
    from ..release.outcome import Outcome


def release(
    *,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help=f"TOML file; default: {SETTINGS_FILE}.", show_default=False)
    ] = Path(SETTINGS_FILE),
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PATTERN",
            help="Only artifacts like this: moe/gguf/Q4_0, gguf or '*/Q4*'; repeatable.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder or URL to write; default: the recipe's.", show_default=False
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Run steps on a Dask cluster: tcp://HOST:8786.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is to do, and what time, memory and disk that takes.")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print a matrix for GitHub Actions, a job an artifact.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Send what passed to the repositories of the recipe's [publish].")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there and no release wrote.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Workers; default: all cores.", show_default=False),
    ] = None,
    html: Html = None,
    junit: Junit = None,
    markdown: Markdown = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Write, run and compare what a recipe asks for, and leave what is done."""
    from ..release.choosing import hands_of, opened_output
    from ..release.forecast import forecast
    from ..release.prepared import prepare
    from ..release.running import carry_out
    from ..release.wanted import expand, select
    from ..release.wanted import matrix as matrix_of

    if matrix and dry_run:
        raise UsageError("--matrix and --dry-run both print what there is to do: give one of them")
    read = load_recipe(recipe)
    wanted = select(expand(read), only or ())
    if matrix:  # on one line, as $GITHUB_OUTPUT takes it
        write_out(json.dumps(matrix_of(wanted)) + "\n")
        return 0
    asked = {"html": html, "junit": junit, "markdown": markdown}
    reports = {kind: path for kind, path in asked.items() if path is not None}
    with opened_output(read, out) as place, watched() as progress, ExitStack() as stack:
        if not dry_run:
            hands = hands_of(place, scheduler=scheduler, publishes=publish, offline=offline, progress=progress)
            stack.callback(hands.close)
        preparation = prepare(
            read, wanted, output=place, reports=reports, weights=not dry_run, offline=offline, progress=progress
        )
        if dry_run:
            found = forecast(preparation, publishes=publish)
            print_json(found.to_json()) if as_json else _print_forecasts(found)
            return 0
        outcome = carry_out(
            preparation, publishes=publish, overwrite=overwrite, jobs=jobs, hands=hands, progress=progress
        )
    print_json({"out": place.shown, **outcome.to_json()}) if as_json else _print(outcome, place.shown)
    return outcome.exit_code


def _print(outcome: Outcome, out: str) -> None:
    from ...validate.report import measured, measures, verdict_words

    rows = []
    for name, result in zip(outcome.names, outcome.report.results, strict=True):
        nearest, _, same, _ = measured(result)
        size = format_size(result.size_bytes) if result.size_bytes else "–"
        rows.append((name, size, nearest, same, verdict_words(result)))
    called, _, share, _ = measures(outcome.report)
    print_rows(output, ("artifact", "size", called, share, "verdict"), rows, texts=("verdict",))
    for name, result in zip(outcome.names, outcome.report.results, strict=True):
        if result.sentence:
            output.print(f"{name}: {result.sentence}", soft_wrap=True)
    done = f"{outcome.n_done} of {len(outcome.steps)} steps done" if outcome.n_done else "nothing was left to do"
    output.print(f"{outcome.report.summary}; {done}; {out}", soft_wrap=True)


def _print_forecasts(found: Forecasts) -> None:
    rows = []
    for each in found.steps:
        cost = each.cost
        cells = ("done", "", "") if each.is_left else (_time(cost.seconds), _size(cost.memory), _size(cost.disk))
        rows.append((each.step.label, *cells))
    print_rows(output, ("step", "time", "memory", "disk"), rows)
    there = "" if found.free is None else f" of {format_size(found.free)} that are free on the disk"
    output.print(
        f"{len(found.to_do)} of {len(found.steps)} steps to do: about {_time(found.seconds)}, at most "
        f"{format_size(found.memory)} of memory at a time, {format_size(found.disk)}{there}",
        soft_wrap=True,
    )


def _size(n_bytes: int) -> str:
    return format_size(n_bytes) if n_bytes else "–"


def _time(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
