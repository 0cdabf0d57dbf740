"""Shows a report: one self-contained HTML page, or a table on the console."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..graph.text import plain
from ..graph.units import format_size
from .chart import NARROW, WIDE, by_target, draw, mark_path
from .gate_words import gate_words
from .gates import part_verdicts
from .layer_bars import bars_of_loss, bars_of_weights
from .outputs import write_report
from .results import ArtifactResult, Fit, Held, Report
from .tables import print_rows

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"pass": "green", "fail": "red", "skipped": "dim"}
# What a table shows of each artifact's logits, and of vectors.
_OF_LOGITS = ("mean KLD", "p99.9", "same top-1", "PPL ratio")
_OF_VECTORS = ("mean cosine", "lowest", "same nearest", "order")
_TEXTS = ("target", "quant", "budget", "verdict")
_FITS = {Fit.FITS: "fits", Fit.OVER: "over", Fit.FREE: "–"}
_SHORT = 12  # characters of a hash that is there to be recognised


def write_html(report: Report, path: Path) -> None:
    """Writes the page, see `write_report`. Raises: DiskError."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"number": number, "percent": percent, "ratio": ratio, "size": format_size, "short": short}
    environment.globals |= {"measures": measures, "measured": measured, "cosine": cosine}
    environment.globals |= {"parts": part_verdicts, "words": gate_words, "memory": memory, "mark_path": mark_path}
    environment.globals |= {"bars_of_loss": bars_of_loss, "bars_of_weights": bars_of_weights}
    environment.globals |= {"Fit": Fit, "Held": Held}
    template = environment.from_string((files(__package__) / "report.html.j2").read_text(encoding="utf-8"))
    groups = by_target(report.results)
    charts = {name: draw(groups, frame) for name, frame in (("broad", WIDE), ("slim", NARROW))}
    # What there is to look at comes first, with the numbers of the table.
    details = sorted(
        enumerate((result for group in groups.values() for result in group), start=1), key=lambda each: each[1].is_good
    )
    write_report(path, template.render(report=report, groups=groups, charts=charts, details=details))


def short(sha256: str) -> str:
    """The beginning of a hash; a dash for none."""
    return sha256[:_SHORT] or "–"


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
    """A row an artifact, then a line for each that has something to say."""
    from rich.text import Text

    rows: list[tuple[str | Text, ...]] = []
    for result in report.results:
        verdict = Text(result.verdict.value, style=_STYLES[result.verdict.value])
        rows.append((*_cells(result), _FITS[result.fit], verdict))
    columns = ("artifact", "target", "quant", "size", "memory", *measures(report), "budget", "verdict")
    print_rows(console, columns, rows, texts=_TEXTS)
    for result in report.results:
        if result.sentence:
            line = f"{result.artifact.label}: {verdict_words(result)}: {result.sentence}"
            console.print(Text(plain(line)), soft_wrap=True)
    for name in failed_gates(report):
        console.print(Text(f"  {name}: {gate_words(name)}"), soft_wrap=True)


def verdict_words(result: ArtifactResult) -> str:
    """`fail, broken, over budget`: both verdicts, what kind of failure, and whether a baseline was missing."""
    words = [result.verdict.value]
    words += [result.failure.value] if result.failure else []
    words += ["over budget"] if result.fit is Fit.OVER else []
    words += ["no baseline entry"] if result.baseline is Held.NO_ENTRY else []
    return ", ".join(words)


def failed_gates(report: Report) -> list[str]:
    """The names of all gates that an artifact did not keep, once each."""
    return list(dict.fromkeys(gate.name for each in report.results for gate in each.gates if not gate.passed))


def _cells(result: ArtifactResult) -> tuple[str, ...]:
    """All columns but the verdicts."""
    artifact = result.artifact
    sizes = format_size(result.size_bytes), memory(result)
    return (artifact.label, artifact.target, artifact.quant, *sizes, *measured(result))


def measures(report: Report) -> tuple[str, ...]:
    """What the numbers of `measured` are called."""
    return _OF_VECTORS if report.gives_vectors else _OF_LOGITS


def measured(result: ArtifactResult, *, with_error: bool = False) -> tuple[str, ...]:
    """What a table shows of an artifact's logits or vectors, the first number with its error if that is wanted."""
    if (vectors := result.vectors) is not None:
        error = f" ± {number(vectors.cosine_se)}" if with_error else ""
        nearness = cosine(vectors.cosine_mean) + error, cosine(vectors.cosine_min)
        return (*nearness, percent(vectors.same_nearest), ratio(vectors.ranks_mean))
    if (metrics := result.metrics) is not None:
        error = f" ± {number(metrics.kld_se)}" if with_error else ""
        divergence = number(metrics.kld_mean) + error, number(metrics.kld_p999)
        return (*divergence, percent(metrics.same_top1), ratio(metrics.ppl_ratio))
    return ("–",) * len(_OF_LOGITS)


def cosine(value: float | None) -> str:
    """Six decimals, named: 0.999990 is no 1, and no divergence."""
    return f"cos {value:.6f}" if value is not None and math.isfinite(value) else number(value)
