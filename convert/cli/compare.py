"""`lfm-convert compare A B --reference MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import ExitCode, UsageError
from .. import pipeline
from ..artifacts import find_artifacts
from .adapter_options import adapter_options
from .comparison_options import OtherReference, Reference, comparison_options
from .console import Json, Offline, Revision, output, print_json, watched
from .option_groups import grouped


@grouped(adapters=adapter_options, comparison=comparison_options)
def compare(
    *,
    first: Annotated[Path, typer.Argument(help="An artifact's file.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another of the same checkpoint.", show_default=False)],
    reference: Reference = None,
    adapters: Adapting,
    other_reference: OtherReference = False,
    comparison: dict[str, Any],
    json_output: Json = False,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Tell which of two artifacts is closer to the checkpoint, position by position; fails if it is the first."""
    from ...validate.compare import compare_results

    if sum(len(find_artifacts(path)) for path in (first, second)) != 2:
        raise UsageError("compare takes two artifacts: give their files, not folders")
    with watched() as progress:
        report = pipeline.validate(
            [first, second],
            reference=reference,
            adapters=adapters,
            revision=revision,
            offline=offline,
            other_reference=other_reference,
            **comparison,
            progress=progress,
        )
    found = compare_results(*report.results)
    if json_output:
        print_json(found.to_json())
    else:
        for line in found.lines:
            output.print(line, markup=False)
        output.print(f"{found.sentence}.")
    return ExitCode.QUALITY if found.second_is_worse else ExitCode.OK
