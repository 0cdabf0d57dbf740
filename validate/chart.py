"""Size against divergence as the geometry of an SVG: where points, ticks and labels go.

Both axes are logarithmic. Labels are placed one by one where they touch no point and no other label: names where all
of them find room, else the numbers that the artifacts have in the table. A target has a mark of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..graph.units import format_size
from .results import ArtifactResult, Fit

# Below this mean divergence artifacts cannot be told from the checkpoint; they share the bottom line.
_LEAST_KLD = 1e-6
_LETTER, _LINE = 6.6, 13.0  # of a label, in a 11-unit font
_BETWEEN = 5.0  # labels side by side, so that 1 and 20 are not 120
_RADIUS, _RING = 5.0, 4.0  # of a mark, and how far the ring of one over budget is around it
_MAX_LETTERS = 18
# Rings around a mark that a label is looked for on: a name further off is harder to follow than a number.
_RINGS_NAME, _RINGS_NUMBER = 3, 24
# Corners of the marks, from the middle and in units of the radius; the first is a circle.
_CORNERS: Sequence[Sequence[tuple[float, float]]] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0.0, -1.15), (1.15, 0.9), (-1.15, 0.9)),
    ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
    ((-1.15, -0.9), (1.15, -0.9), (0.0, 1.15)),
)
# Ticks in a power of ten, from fine to coarse.
_TICKS: Sequence[Sequence[float]] = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
N_MARKS = len(_CORNERS)


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

    def holds(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Frame:
    """A picture's size, and the plot inside it."""

    width: int
    height: int
    plot: Box


WIDE = Frame(640, 400, Box(52, 12, 630, 356))
NARROW = Frame(340, 330, Box(44, 10, 334, 286))


@dataclass(frozen=True)
class Point:
    """An artifact: its mark at (x, y), which of the marks it is, its label in `box`."""

    x: float
    y: float
    mark: int
    verdict: str
    is_over: bool
    label: str
    title: str
    box: Box

    @property
    def leader(self) -> tuple[float, float] | None:
        """Where a line from the mark meets its label; None if the label is so near that it needs none."""
        x = min(max(self.x, self.box.left), self.box.right)
        y = min(max(self.y, self.box.top), self.box.bottom)
        return (x, y) if math.hypot(x - self.x, y - self.y) > 2.2 * _RADIUS else None

    @property
    def path(self) -> str:
        return mark_path(self.mark, self.x, self.y)


@dataclass(frozen=True)
class Tick:
    """A grid line at `position` along its axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Everything a picture shows. `is_numbered` says that labels are the numbers of the table."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    frame: Frame
    is_numbered: bool


def by_target(results: Iterable[ArtifactResult]) -> dict[str, list[ArtifactResult]]:
    """Artifacts by target, both in order of their names, those of a target by size."""
    found: dict[str, list[ArtifactResult]] = {}
    for result in sorted(results, key=lambda r: (r.artifact.target, r.size_bytes, r.artifact.quant, r.artifact.label)):
        found.setdefault(result.artifact.target, []).append(result)
    return found


def mark_path(mark: int, x: float, y: float) -> str:
    """The outline of a mark, as an SVG path."""
    corners = _CORNERS[mark % N_MARKS]
    if not corners:
        r = _RADIUS
        return f"M{x - r:g} {y:g}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0z"
    return "M" + "L".join(f"{x + dx * _RADIUS:.1f} {y + dy * _RADIUS:.1f}" for dx, dy in corners) + "z"


def draw(groups: Mapping[str, Sequence[ArtifactResult]], frame: Frame = WIDE) -> Chart | None:
    """The chart of all artifacts that have a finite mean divergence, as `by_target` orders them; None if there is none."""
    every = [(mark, result) for mark, group in enumerate(groups.values()) for result in group]
    shown = [
        (mark, number, result, max(result.metrics.kld_mean, _LEAST_KLD))
        for number, (mark, result) in enumerate(every, start=1)
        if result.metrics is not None and math.isfinite(result.metrics.kld_mean) and result.size_bytes > 0
    ]
    if not shown:
        return None
    plot = frame.plot
    low, high = _size_range([result.size_bytes for _, _, result, _ in shown])
    least, most = _decades([kld for *_, kld in shown])
    marks = [
        (
            _scale(result.size_bytes, low, high, plot.left, plot.right),
            _scale(kld, least, most, plot.bottom, plot.top),
        )
        for _, _, result, kld in shown
    ]
    labels = [_shorten(result.artifact.quant) for _, _, result, _ in shown]
    radii = [_RADIUS + _RING * (result.fit is Fit.OVER) for _, _, result, _ in shown]
    boxes = place_labels(marks, labels, plot, radii=radii, n_rings=_RINGS_NAME)
    is_numbered = None in boxes
    if is_numbered:
        labels = [str(number) for _, number, _, _ in shown]
        boxes = place_labels(marks, labels, plot, radii=radii, n_rings=_RINGS_NUMBER)
    points = tuple(
        Point(
            x=x,
            y=y,
            mark=mark,
            verdict=result.verdict.value,
            is_over=result.fit is Fit.OVER,
            label=label,
            title=f"{number}. {result.label}: {format_size(result.size_bytes)}, {kld:.3g} nats",
            box=box or _beside(x, y, label, plot),
        )
        for (mark, number, result, kld), (x, y), label, box in zip(shown, marks, labels, boxes, strict=True)
    )
    n_ticks = 6 if frame.width > 400 else 4
    x_ticks = [
        Tick(_scale(size, low, high, plot.left, plot.right), format_size(int(size)))
        for size in _sizes(low, high, n_ticks)
    ]
    exponents = range(round(math.log10(least)), round(math.log10(most)) + 1)
    y_ticks = [Tick(_scale(10.0**e, least, most, plot.bottom, plot.top), _power(e)) for e in exponents]
    return Chart(points, tuple(x_ticks), tuple(y_ticks), frame, is_numbered)


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


def _sizes(low: float, high: float, most: int) -> Sequence[float]:
    """Round sizes inside the range, as many as there is room for, none so near an end that its label is cut off."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    low, high = low * (high / low) ** 0.03, high * (low / high) ** 0.05
    for factors in _TICKS:
        ticks = [factor * 10.0**e for e in exponents for factor in factors if low <= factor * 10.0**e <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _power(exponent: int) -> str:
    text = f"{10.0**exponent:g}" if exponent > -4 else f"1e{exponent}"
    return f"≤ {text}" if 10.0**exponent <= _LEAST_KLD else text


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else text[: _MAX_LETTERS - 1] + "…"


def place_labels(
    marks: Sequence[tuple[float, float]],
    labels: Sequence[str],
    plot: Box,
    *,
    radii: Sequence[float],
    n_rings: int,
) -> list[Box | None]:
    """A box for each label that touches no mark, no other label and no edge, as near to its mark as there is one; None
    where there is none on so many rings.
    """
    taken = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(marks, radii, strict=True)]
    placed: list[Box | None] = []
    for (x, y), radius, label in zip(marks, radii, labels, strict=True):
        boxes = _candidates(x, y, radius, len(label) * _LETTER + _BETWEEN, n_rings)
        free = (box for box in boxes if plot.holds(box) and not any(box.touches(other) for other in taken))
        found = next(free, None)
        placed.append(found)
        taken += [found] if found else []
    return placed


def _candidates(x: float, y: float, radius: float, width: float, n_rings: int) -> Iterable[Box]:
    """Boxes around a mark, nearest first: beside it, then on rings of 24 directions."""
    for ring in range(n_rings):
        gap = radius + 2 + ring * 9
        for step in (0, 12, 6, 18, *(s for s in range(24) if s % 6)):
            angle = step * math.pi / 12
            centre_x = x + math.cos(angle) * (gap + width / 2)
            centre_y = y + math.sin(angle) * (gap + _LINE / 2)
            yield Box(centre_x - width / 2, centre_y - _LINE / 2, centre_x + width / 2, centre_y + _LINE / 2)


def _beside(x: float, y: float, label: str, plot: Box) -> Box:
    """Where a label goes for which there is no room: inside the plot all the same."""
    width = len(label) * _LETTER + _BETWEEN
    left = min(max(x - width / 2, plot.left), plot.right - width)
    top = min(max(y - _LINE / 2, plot.top), plot.bottom - _LINE)
    return Box(left, top, left + width, top + _LINE)
