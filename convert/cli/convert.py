"""`lfm-convert [convert] MODEL --target T --quant Q`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...validate.budgets import Budgets
from .. import pipeline
from ..units import format_size, parse_size
from .budget_options import budget_options
from .bundle import bundled
from .console import Json, Model, Offline, Revision, Target, output, print_json, watched
from .target_options import target_options


@bundled(options=target_options, budgets=budget_options)
def convert(
    *,
    target: Target,
    model: Model = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", "-q", help="Quants, comma-separated, or all; default: the target's.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: ./MODEL-TARGET.", show_default=False)
    ] = None,
    options: dict[str, Any],
    strict: Annotated[bool, typer.Option("--strict", help="Refuse encodings other than the quant names.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace artifacts that are there already.")] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Workers; default: all cores.", show_default=False)
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Peak memory of writing, like 1GB.", show_default=False)
    ] = None,
    budgets: Budgets,
    no_validate: Annotated[bool, typer.Option("--no-validate", help="Write only; do not run the artifacts.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Write the artifacts of one target, then run each and compare it with the checkpoint."""
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, progress=progress)
        done = pipeline.convert(
            graph,
            target=target,
            quant=quant,
            out=out,
            options=options,
            strict=strict,
            overwrite=overwrite,
            jobs=jobs,
            max_memory=parse_size(max_memory) if max_memory else None,
            budgets=replace(budgets, context=options.get("context", budgets.context)),
            validate_after=not no_validate,
            progress=progress,
        )
    if as_json:
        print_json(_to_json(done))
        return done.report.exit_code if done.report else 0
    for artifact in done.artifacts:
        output.print(f"{artifact.path}  {format_size(artifact.size_bytes)}", soft_wrap=True)
    if done.report is None:
        return 0
    from ...validate.report import print_table

    print_table(done.report, output)
    return done.report.exit_code


def _to_json(done: pipeline.Converted) -> dict[str, object]:
    report = done.report.to_json() if done.report else {"artifacts": []}
    return {
        "folder": str(done.folder),
        "artifacts": [
            {
                "path": str(a.path),
                "target": a.target,
                "quant": a.quant,
                "size_bytes": a.size_bytes,
                "files": [str(f) for f in a.files],
            }
            for a in done.artifacts
        ],
        "validation": report,
    }
