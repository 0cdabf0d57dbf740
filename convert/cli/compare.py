"""`lfm-convert compare A B --reference MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import ExitCode, UsageError
from .. import pipeline
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
    if len(report.results) != 2:
        raise UsageError("compare takes two artifacts: give their files, not folders")
    found = compare_results(*report.results)
    if json_output:
        print_json(found.to_json())
    else:
        output.print(f"{found.second} − {found.first}, {found.n_positions} positions")
        output.print(f"  mean KLD      {found.kld_difference:+.3g} ± {found.kld_se:.2g} nats")
        output.print(
            f"  same top-1    {found.only_first} positions only the first, {found.only_second} only the second "
            f"(McNemar p = {found.p_value:.2g})",
            markup=False,
        )
        output.print(f"{found.sentence}.")
    return ExitCode.QUALITY if found.second_is_worse else ExitCode.OK
