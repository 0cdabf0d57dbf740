"""Options of what is told of a comparison, and of the baseline it is held to: `convert` and `validate` take the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...graph.errors import UsageError
from ...validate.outputs import check_reports, is_stdout, write_report
from .console import print_json

if TYPE_CHECKING:
    from ...validate.baseline import Baseline
    from ...validate.results import Report

JsonPath = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON to this file; '-', here and below, is stdout.",
        show_default=False,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a self-contained HTML page.", show_default=False),
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE", help="Write JUnit XML, a case for each gate.", show_default=False),
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", metavar="FILE", help="Write a summary for a pull request.", show_default=False),
]
BaselineFile = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE", help="Also hold artifacts to the results stored here.", show_default=False
    ),
]
Update = Annotated[bool, typer.Option("--update-baseline", help="Store the results of those that pass in --baseline.")]
Require = Annotated[bool, typer.Option("--require-baseline", help="Fail an artifact that --baseline has no entry for.")]


@dataclass(frozen=True, kw_only=True)
class Reports:
    """What a run is to tell and where, and what it is held to. `stored` is None where no baseline is held to."""

    json: Path | None
    html: Path | None
    junit: Path | None
    markdown: Path | None
    baseline: Path | None
    update: bool
    require: bool

    @property
    def is_asked(self) -> bool:
        """Whether the run is to tell, or is held to, more than its own verdict."""
        return any(path is not None for path in (*self._paths, self.baseline))

    @property
    def needs_report(self) -> bool:
        """Whether there must be a comparison: JSON tells what was written, too."""
        return any(path is not None for path in (self.html, self.junit, self.markdown, self.baseline))

    @property
    def _paths(self) -> tuple[Path | None, ...]:
        return self.json, self.html, self.junit, self.markdown

    @property
    def takes_stdout(self) -> bool:
        return any(path is not None and is_stdout(path) for path in self._paths)

    def check(self, read: Iterable[Path]) -> None:
        """Refuses reports that cannot be written, or would replace a file that is read; see `check_reports`."""
        check_reports([*self._paths, self.baseline if self.update else None], read=read)

    def held_to(self) -> dict[str, Any]:
        """The baseline as `pipeline.validate` takes it. One that will be updated is read, too, so that a malformed one is
        refused first. Raises: InputError.
        """
        from ...validate.baseline import load_baseline

        stored: Baseline | None = None
        if self.baseline is not None and not (self.update and not self.baseline.exists()):
            stored = load_baseline(self.baseline)
        return {"baseline": None if self.update else stored, "require_baseline": self.require}

    def write(self, report: Report, value: Any) -> None:
        """Writes what was asked for; `value` is what JSON says. Raises: DiskError."""
        from ...validate.baseline import update_baseline
        from ...validate.formats import write_junit, write_markdown
        from ...validate.report import write_html

        if self.baseline is not None and self.update:
            update_baseline(self.baseline, report)
        for path, write in ((self.html, write_html), (self.junit, write_junit), (self.markdown, write_markdown)):
            if path is not None:
                write(report, path)
        self.write_json(value)

    def write_json(self, value: Any) -> None:
        if self.json is not None and is_stdout(self.json):
            print_json(value)
        elif self.json is not None:
            write_report(self.json, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def report_options(
    *,
    json_path: JsonPath = None,
    html: Html = None,
    junit: Junit = None,
    markdown: Markdown = None,
    baseline: BaselineFile = None,
    update: Update = False,
    require: Require = False,
) -> Reports:
    """The reports of a run. Raises: UsageError for options that need another, or exclude each other."""
    for name, is_given in (("--update-baseline", update), ("--require-baseline", require)):
        if is_given and baseline is None:
            raise UsageError(f"{name} needs --baseline FILE")
    if update and require:
        raise UsageError("--update-baseline makes the entries that --require-baseline asks for: give one of them")
    return Reports(
        json=json_path, html=html, junit=junit, markdown=markdown, baseline=baseline, update=update, require=require
    )
