"""`lfm-convert targets`: what can be written here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .console import Json, output, print_json

if TYPE_CHECKING:
    from ...targets.target import Target


def targets(as_json: Json = False) -> int:
    """List targets, their quants, and whether their runtime is installed."""
    from ...targets.target import get_target, target_names

    found = [get_target(name) for name in target_names()]
    if as_json:
        print_json({"targets": [_describe(target) for target in found]})
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "runs in", "quants", "default", "installed"):
        table.add_column(heading)
    for target in found:
        quants = ", ".join(policy.name for policy in target.policies)
        table.add_row(target.name, target.title, quants, target.default_quant, target.missing() or "yes")
    output.print(table)
    for target in found:
        if target.grammar is not None:
            output.print(f"{target.name} takes {target.grammar}.")
    return 0


def _describe(target: Target) -> dict[str, object]:
    return {
        "target": target.name,
        "runs_in": target.title,
        "quants": [policy.name for policy in target.policies],
        "grammar": target.grammar,
        "default": target.default_quant,
        "missing": target.missing(),
    }
