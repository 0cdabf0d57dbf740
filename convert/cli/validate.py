"""`lfm-convert validate ARTIFACT… --reference MODEL`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...validate.budgets import Budgets
from ...validate.lines import Lines
from ...validate.memory import CONTEXT_TOKENS
from .. import pipeline
from ..artifacts import record
from ..manifest import MANIFEST_FILE
from .adapter_options import adapter_options
from .budget_options import budget_options
from .comparison_options import OtherReference, Reference, comparison_options, line_options
from .console import Offline, Revision, output, watched
from .option_groups import grouped
from .report_options import Reports, report_options


@grouped(
    adapters=adapter_options,
    comparison=comparison_options,
    lines=line_options,
    budgets=budget_options,
    reports=report_options,
)
def validate(
    *,
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifact files, or folders with their manifest.", show_default=False)
    ],
    reference: Reference = None,
    adapters: Adapting,
    other_reference: OtherReference = False,
    comparison: dict[str, Any],
    lines: Lines,
    budgets: Budgets,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Tokens of the caches that memory is told for.")
    ] = CONTEXT_TOKENS,
    reports: Reports,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Run artifacts in their runtimes and compare each with the checkpoint."""
    from ...validate.report import print_table

    reports.check(read=_inputs(artifacts, comparison.values()))
    held_to = reports.held_to()
    with watched() as progress:
        report = pipeline.validate(
            artifacts,
            reference=reference,
            adapters=adapters,
            revision=revision,
            offline=offline,
            other_reference=other_reference,
            **comparison,
            **held_to,
            lines=lines,
            budgets=replace(budgets, context=context),
            progress=progress,
        )
    record(report, progress=progress)
    reports.write(report, report.to_json())
    if not reports.takes_stdout:
        print_table(report, output)
    return report.exit_code


def _inputs(artifacts: Iterable[Path], options: Iterable[object]) -> Iterator[Path]:
    """Files that a run reads and no report may replace: the artifacts, their manifests, and texts of its options."""
    for path in artifacts:
        yield path
        yield (path if path.is_dir() else path.parent) / MANIFEST_FILE
    yield from (value for value in options if isinstance(value, Path))
