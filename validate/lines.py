"""Lines that a team draws for its own artifacts: what it does not want to ship, whatever the format loses by itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from ..graph.errors import UsageError
from ..targets.target import get_target, target_names
from .gates import GateResult, Part, at_least, at_most

if TYPE_CHECKING:
    from .metrics import Metrics
    from .results import ArtifactResult, Report
    from .vectors import VectorMetrics

_SOURCE = "the line that was set for this run"
_OF_LOGITS: tuple[str, ...] = ("max_kld", "min_top1", "max_ppl_change")
_OF_VECTORS: tuple[str, ...] = ("min_cosine",)
_NOT_OF_VECTORS = "max-kld, min-top1 and max-ppl-change are lines for logits, and the model gives vectors: not judged"
_NOT_OF_LOGITS = "min-cosine is a line for vectors, and the model gives logits: not judged"


@dataclass(frozen=True, kw_only=True)
class Lines:
    """None is no line. Units: `max_kld` in nats; `min_top1` and `max_ppl_change` are fractions, `min_cosine` is one of vectors. `quants` are the lines of
    some quants, by name in lower case, in place of those for all. `is_asked` says that the command itself draws one.

    Raises: UsageError for a line that nothing could be on either side of.
    """

    max_kld: float | None = None
    min_top1: float | None = None
    max_ppl_change: float | None = None
    min_cosine: float | None = None
    quants: Mapping[str, Lines] = field(default_factory=dict)
    is_asked: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        _check("max-kld", self.max_kld, most=math.inf, expected="nats, 0 or more")
        for name, value in (("min-top1", self.min_top1), ("max-ppl-change", self.max_ppl_change)):
            _check(name, value, most=1.0, expected="a fraction like 0.9, or 90%")
        _check("min-cosine", self.min_cosine, most=1.0, expected="a cosine like 0.99")

    def __bool__(self) -> bool:
        return self != Lines()

    def replaced_by(self, other: Lines) -> Lines:
        """These, and in place of each, for quants too, the one that the other has."""
        set_there = {name: value for name in _NAMES if (value := getattr(other, name)) is not None}
        quants = {quant: replace(lines, **set_there) for quant, lines in self.quants.items()}
        return replace(self, **set_there, quants=quants, is_asked=other.is_asked)

    def of(self, quant: str) -> Lines:
        """The lines that a quant is held to."""
        own = self.quants.get(quant.casefold())
        return replace(self, quants={}) if own is None else replace(self, quants={}).replaced_by(own)


# Types of llama.cpp that no target here writes.
_OTHERS = re.compile(r"(IQ|TQ)[1-4]_\w+", re.IGNORECASE)
_NAMES = tuple(each.name for each in fields(Lines) if each.name.startswith(("max_", "min_")))


def _check(name: str, value: float | None, *, most: float, expected: str) -> None:
    # A comparison with NaN is false.
    if value is not None and not (0 <= value <= most and math.isfinite(value)):
        raise UsageError(f"--{name} is {value:g}: expected {expected}")


def parse_fraction(text: str) -> float:
    """0.9 of `0.9` or `90%`. Raises: UsageError for what is no number."""
    number, percent, rest = text.strip().partition("%")
    try:
        if rest:
            raise ValueError
        return float(number) / 100 if percent else float(number)
    except ValueError:
        raise UsageError(f"'{text:.40}' is no fraction: write it like 0.9 or 90%") from None


def is_quant(name: str) -> bool:
    """Whether a target writes it, or llama.cpp does: lines may be for artifacts of others."""
    if _OTHERS.fullmatch(name):
        return True
    for target in target_names():
        try:
            get_target(target).named(name)
        except UsageError:
            continue
        return True
    return False


def judge_lines(metrics: Metrics, lines: Lines) -> list[GateResult]:
    """A gate for each line that was set, about the very numbers that reports show; NaN is on the wrong side."""
    return _judged(
        (at_most, "line_kld", metrics.kld_mean, lines.max_kld),
        (at_least, "line_top1", metrics.same_top1, lines.min_top1),
        (at_most, "line_ppl_change", abs(metrics.ppl_ratio - 1.0), lines.max_ppl_change),
    )


def judge_vector_lines(vectors: VectorMetrics, lines: Lines) -> list[GateResult]:
    """The same of vectors."""
    return _judged((at_least, "line_cosine", vectors.cosine_mean, lines.min_cosine))


def _judged(*stated: tuple[Callable[..., GateResult], str, float, float | None]) -> list[GateResult]:
    return [
        judge(name, value, limit, Part.QUALITY, source=_SOURCE)
        for judge, name, value, limit in stated
        if limit is not None
    ]


def hold_to_lines(report: Report, lines: Lines) -> Report:
    """The report with the gates of these lines for every artifact that was measured."""
    return report.with_results(_held(result, lines.of(result.artifact.quant)) for result in report.results)


def _held(result: ArtifactResult, lines: Lines) -> ArtifactResult:
    if result.metrics is not None:
        held, others, note = result.with_gates(*judge_lines(result.metrics, lines)), _OF_VECTORS, _NOT_OF_LOGITS
    elif result.vectors is not None:
        held, others, note = result.with_gates(*judge_vector_lines(result.vectors, lines)), _OF_LOGITS, _NOT_OF_VECTORS
    else:
        return result
    return held.with_note(note) if any(getattr(lines, name) is not None for name in others) else held
