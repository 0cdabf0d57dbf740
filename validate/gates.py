"""What an artifact is judged by: a measured number, its limit, and what it means to miss it.

No limit is stated here. Each is measured on the model at hand (validate/floor.py, validate/weights.py), or is the
team's own; what a class of quants usually loses is told by validate/published.py, and fails nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Part(enum.StrEnum):
    """What a gate is about, in the order in which a failure is best read."""

    TOKENIZER = "tokenizer"
    WEIGHTS = "weights"
    EXECUTION = "execution"
    CACHE = "cache"
    FORMAT = "format"
    QUALITY = "quality"


class Failure(enum.StrEnum):
    """Why an artifact does not pass, the gravest first. The last two are said of the run, which was ended: nothing was
    found wrong before.
    """

    BROKEN = "broken"
    WORSE = "worse than its format"
    OVER = "over the line the team set"
    LATE = "not finished in time"
    TOO_LARGE = "over the memory limit"


_FAILURES: Mapping[Part, Failure] = {Part.FORMAT: Failure.WORSE, Part.QUALITY: Failure.OVER}


@dataclass(frozen=True)
class GateResult:
    """One limit and what was measured.

    `at_least` tells which side passes; `where` names what was worst; `source` is what the limit rests on.
    """

    name: str
    value: float
    limit: float
    passed: bool
    at_least: bool = False
    part: Part = Part.QUALITY
    where: str = ""
    source: str = ""

    @property
    def failure(self) -> Failure:
        """What it means not to pass."""
        return _FAILURES.get(self.part, Failure.BROKEN)

    @property
    def sentence(self) -> str:
        """What was measured: `kld_mean is 0.31, limit at most 0.2`."""
        if self.name == "finite":
            return "the logits are finite" if self.passed else "the logits hold NaN or infinity"
        side = "least" if self.at_least else "most"
        place = f" ({self.where})" if self.where else ""
        return f"{self.name} is {self.value:.5g}{place}, limit at {side} {self.limit:.5g}"


def at_most(
    name: str, value: float, limit: float, part: Part = Part.QUALITY, where: str = "", source: str = ""
) -> GateResult:
    """NaN passes no gate."""
    return GateResult(name, value, limit, value <= limit, part=part, where=where, source=source)


def at_least(
    name: str, value: float, limit: float, part: Part = Part.QUALITY, where: str = "", source: str = ""
) -> GateResult:
    """NaN passes no gate."""
    return GateResult(name, value, limit, value >= limit, at_least=True, part=part, where=where, source=source)


def failure_of(gates: Sequence[GateResult]) -> Failure | None:
    """The gravest of what the gates found; None if all pass."""
    failed = {gate.failure for gate in gates if not gate.passed}
    return next((failure for failure in Failure if failure in failed), None)


def verdict(gates: Sequence[GateResult]) -> str:
    """`pass` or `fail`; no gates at all prove nothing, so they fail."""
    return "pass" if gates and all(gate.passed for gate in gates) else "fail"


def part_verdicts(gates: Sequence[GateResult]) -> dict[str, str]:
    """The verdict of each part that was looked at."""
    parts = {part: [gate for gate in gates if gate.part is part] for part in Part}
    return {part.value: verdict(found) for part, found in parts.items() if found}
