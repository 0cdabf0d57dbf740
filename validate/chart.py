"""Size against divergence as the geometry of an SVG: where points, ticks and labels go.

Both axes are logarithmic. Labels are placed one by one where they touch no point and no other label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..convert.units import format_size
from .results import ArtifactResult

WIDTH, HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 546, 12, 336
# Below this mean divergence artifacts cannot be told from the checkpoint; they share the bottom line.
_LEAST_KLD = 1e-6
_LETTER, _LINE = 7.2, 13.0  # of a label, in a 11-unit font
_RADIUS = 5.0
_MAX_LETTERS = 26


@dataclass(frozen=True)
class Box:
    """A rectangle. Units: those of the view box, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Point:
    """An artifact: its mark at (x, y), its label in `box`, its verdict as the mark's class."""

    x: float
    y: float
    verdict: str
    label: str
    title: str
    box: Box

    @property
    def leader(self) -> tuple[float, float] | None:
        """Where a line from the mark meets its label; None if the label is so near that it needs none."""
        x = min(max(self.x, self.box.left), self.box.right)
        y = min(max(self.y, self.box.top), self.box.bottom)
        return (x, y) if math.hypot(x - self.x, y - self.y) > 3 * _RADIUS else None


@dataclass(frozen=True)
class Tick:
    """A grid line at `position` along its axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Everything the page draws."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    plot: Box = field(default_factory=lambda: Box(_LEFT, _TOP, _RIGHT, _BOTTOM))


def draw(results: Sequence[ArtifactResult]) -> Chart | None:
    """The chart of all artifacts that have a finite mean divergence; None if there is none."""
    shown = [
        (result, max(result.metrics.kld_mean, _LEAST_KLD))
        for result in results
        if result.metrics is not None and math.isfinite(result.metrics.kld_mean) and result.size_bytes > 0
    ]
    if not shown:
        return None
    low, high = _size_range([result.size_bytes for result, _ in shown])
    least, most = _decades([kld for _, kld in shown])
    marks = [
        (
            _scale(result.size_bytes, low, high, _LEFT, _RIGHT),
            _scale(kld, least, most, _BOTTOM, _TOP),
        )
        for result, kld in shown
    ]
    labels = [_shorten(f"{result.artifact.target} {result.artifact.quant}") for result, _ in shown]
    boxes = place_labels(marks, labels)
    points = tuple(
        Point(x, y, result.verdict.value, label, f"{result.artifact.label}: {kld:.3g} nats", box)
        for (result, kld), (x, y), label, box in zip(shown, marks, labels, boxes, strict=True)
    )
    x_ticks = [Tick(_scale(size, low, high, _LEFT, _RIGHT), format_size(int(size))) for size in _sizes(low, high)]
    exponents = range(round(math.log10(least)), round(math.log10(most)) + 1)
    y_ticks = [Tick(_scale(10.0**e, least, most, _BOTTOM, _TOP), _power(e)) for e in exponents]
    return Chart(points, tuple(x_ticks), tuple(y_ticks))


def _scale(value: float, low: float, high: float, start: float, stop: float) -> float:
    return round(start + (stop - start) * math.log(value / low) / math.log(high / low), 1)


def _size_range(sizes: Sequence[int]) -> tuple[float, float]:
    """Around all sizes, at least a factor of two wide, so that equal sizes have a scale, too."""
    low, high = min(sizes) / 1.15, max(sizes) * 1.15
    widen = max(1.0, math.sqrt(2 * low / high))
    return low / widen, high * widen


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _sizes(low: float, high: float) -> Iterable[float]:
    """Round sizes inside the range: 1, 2 and 5 times powers of ten, thinned to six at most."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else ()


def _power(exponent: int) -> str:
    text = f"{10.0**exponent:g}" if exponent > -4 else f"1e{exponent}"
    return f"≤ {text}" if 10.0**exponent <= _LEAST_KLD else text


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else text[: _MAX_LETTERS - 1] + "…"


def place_labels(marks: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[Box]:
    """A box for each label that touches no mark, no other label and no edge, as near to its mark as there is one."""
    taken = [Box(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in marks]
    placed = []
    for (x, y), label in zip(marks, labels, strict=True):
        boxes = list(_candidates(x, y, len(label) * _LETTER))
        free = (box for box in boxes if _inside(box) and not any(box.touches(other) for other in taken))
        placed.append(next(free, boxes[0]))
        taken.append(placed[-1])
    return placed


def _candidates(x: float, y: float, width: float) -> Iterable[Box]:
    """Boxes around a mark, nearest first: beside it, then on rings of 24 directions."""
    for ring in range(12):
        gap = _RADIUS + 3 + ring * 9
        for step in (0, 12, 6, 18, *(s for s in range(24) if s % 6)):
            angle = step * math.pi / 12
            centre_x = x + math.cos(angle) * (gap + width / 2)
            centre_y = y + math.sin(angle) * (gap + _LINE / 2)
            yield Box(centre_x - width / 2, centre_y - _LINE / 2, centre_x + width / 2, centre_y + _LINE / 2)


def _inside(box: Box) -> bool:
    return box.left >= _LEFT and box.right <= _RIGHT and box.top >= _TOP and box.bottom <= _BOTTOM
