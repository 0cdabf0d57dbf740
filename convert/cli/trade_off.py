"""What other sizes would buy, of a plan whose encodings are allotted."""

from __future__ import annotations

from rich.console import Console

from ...graph.units import format_size
from ...targets.plans import Plan
from ...validate.tables import print_rows

_HEADINGS = ("quant", "size", "bytes", "predicted KLD", "")


def print_trade_off(plan: Plan, console: Console) -> None:
    """A line a size, the plan's own marked; nothing of other plans."""
    points = plan.tuned.get("bits", {}).get("trade_off", ())
    if points:
        print_rows(
            console,
            _HEADINGS,
            [
                (
                    plan.quant,
                    format_size(point["bytes"]),
                    f"{point['bytes']:,}",
                    f"{point['predicted_kld']:.3g}",
                    "chosen" if point["chosen"] else "",
                )
                for point in points
            ],
        )
