"""`lfm-convert validate ARTIFACT… --reference MODEL`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...validate.budgets import Budgets
from ...validate.memory import CONTEXT_TOKENS
from .. import pipeline
from ..errors import UsageError
from ..files import replace_text
from .budget_options import budget_options
from .bundle import bundled
from .comparison_options import Reference, comparison_options
from .console import Offline, Revision, output, print_json, watched


@bundled(comparison=comparison_options, budgets=budget_options)
def validate(
    *,
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifact files, or folders with their manifest.", show_default=False)
    ],
    reference: Reference = None,
    comparison: dict[str, Any],
    budgets: Budgets,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Tokens of the caches that memory is told for.")
    ] = CONTEXT_TOKENS,
    json_path: Annotated[
        str | None,
        typer.Option("--json", help="Write the result as JSON to this file; '-' is stdout.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a self-contained HTML page.", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, a case for each gate.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write a summary for a pull request.", show_default=False)
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Also hold artifacts to the results stored here.", show_default=False),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update-baseline", help="Store the results of those that pass in --baseline.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Run artifacts in their runtimes and compare each with the checkpoint."""
    from ...validate.baseline import hold_to_baseline, load_baseline, update_baseline
    from ...validate.formats import write_junit, write_markdown
    from ...validate.report import print_table, write_html

    if update and baseline is None:
        raise UsageError("--update-baseline needs --baseline FILE")
    stored = load_baseline(baseline) if baseline and not update else {}
    with watched() as progress:
        graph = pipeline.open_model(reference, revision=revision, offline=offline, progress=progress)
        report = pipeline.validate(
            artifacts,
            reference=graph,
            **comparison,
            budgets=replace(budgets, context=context),
            progress=progress,
        )
    report = hold_to_baseline(report, stored)
    pipeline.record(report)
    if baseline is not None and update:
        update_baseline(baseline, report)
    for path, write in ((html, write_html), (junit, write_junit), (markdown, write_markdown)):
        if path is not None:
            write(report, path)
    if json_path == "-":
        print_json(report.to_json())
        return report.exit_code
    if json_path is not None:
        replace_text(Path(json_path), json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    print_table(report, output)
    return report.exit_code
