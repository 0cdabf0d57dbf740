"""Shows a report: one self-contained HTML page, or a table on the console."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.files import replace_text
from ..convert.units import format_size
from .chart import draw
from .gates import part_verdicts
from .localize import Location
from .results import ArtifactResult, Report
from .weights import TensorError

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"pass": "green", "fail": "red", "budget": "yellow", "skipped": "dim"}
_COLUMNS = ("artifact", "target", "quant", "size", "memory", "mean KLD", "p99.9", "same top-1", "PPL ratio", "verdict")
_NUMBERS = range(3, 9)  # columns set flush right


def write_html(report: Report, path: Path) -> None:
    """Writes the page, replacing an older one in one step. Raises: DiskError."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"number": number, "percent": percent, "ratio": ratio, "size": format_size}
    environment.globals |= {"parts": part_verdicts, "recovered": _recovered, "by_layer": _by_layer, "memory": memory}
    template = environment.from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    replace_text(path, template.render(report=report, chart=draw(report.results)))


def _recovered(location: Location) -> dict[int | None, float]:
    """The share of the divergence that goes away with each layer that was put back."""
    return {recovery.layer: recovery.share for recovery in location.recoveries}


def _by_layer(weights: Sequence[TensorError]) -> list[TensorError]:
    """The worst tensor of each layer, those outside layers first; `weights` are worst first."""
    worst: dict[int, TensorError] = {}
    for error in weights:
        worst.setdefault(-1 if error.layer is None else error.layer, error)
    return [worst[layer] for layer in sorted(worst)]


def memory(result: ArtifactResult) -> str:
    """What running takes, weights and caches; a dash for an artifact that could not be read."""
    return "–" if result.run_bytes is None else format_size(result.run_bytes)


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing, a word for what is no number."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def percent(value: float | None) -> str:
    """`98.7 %`, rounded down, so that only a whole is 100 %."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{math.floor(value * 10_000) / 100:.2f} %"


def ratio(value: float | None) -> str:
    """Four decimals: a ratio of 1.0004 is not 1."""
    return number(value) if value is None or not math.isfinite(value) else f"{value:.4f}"


def print_table(report: Report, console: Console) -> None:
    """A row an artifact, then a line for each that has something to say; off a terminal, plain aligned text."""
    from rich.table import Table
    from rich.text import Text

    rows = [(*_cells(result), result.verdict.value) for result in report.results]
    if console.is_terminal:
        table = Table()
        for index, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if index in _NUMBERS else "left")
        for *cells, verdict in rows:
            table.add_row(*map(Text, cells), Text(verdict, style=_STYLES[verdict]))
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        for row in (_COLUMNS, *rows):
            console.print(Text(_aligned(row, widths)), soft_wrap=True)
    for result in report.results:
        if result.message:
            line = f"{result.artifact.label}: {result.verdict.value}: {result.message}"
            console.print(Text(line), soft_wrap=True)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if index in _NUMBERS else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _cells(result: ArtifactResult) -> tuple[str, ...]:
    """All columns but the verdict."""
    artifact, metrics = result.artifact, result.metrics
    measured = ("–",) * 4
    if metrics is not None:
        divergence = number(metrics.kld_mean), number(metrics.kld_p999)
        measured = (*divergence, percent(metrics.same_top1), ratio(metrics.ppl_ratio))
    sizes = format_size(result.size_bytes), memory(result)
    return (artifact.label, artifact.target, artifact.quant, *sizes, *measured)
