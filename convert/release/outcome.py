"""What became of a release: of each step, of each artifact, and one exit code for all."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...graph.errors import ExitCode
from ...validate.results import ArtifactResult, Report, Verdict
from .site import Step

# The gravest first: what is no verdict on an artifact says more than one, and quality more than size.
_GRAVITY = (
    ExitCode.INTERNAL,
    ExitCode.DISK,
    ExitCode.NETWORK,
    ExitCode.BAD_INPUT,
    ExitCode.USAGE,
    ExitCode.QUALITY,
    ExitCode.BUDGET,
    ExitCode.MISSING_BACKEND,
    ExitCode.OK,
)


class End(enum.StrEnum):
    """How a step ended. `LEFT` was done before; `SKIPPED` needs one that failed."""

    DONE = "done"
    LEFT = "left as it is"
    FAILED = "failed"
    SKIPPED = "not reached"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One step and its end; `message` is the sentence of a failure, `seconds` what was spent on it now."""

    step: Step
    end: End
    seconds: float = 0.0
    code: ExitCode = ExitCode.OK
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.step.kind,
            "name": self.step.name,
            "end": self.end.value,
            "seconds": round(self.seconds, 3),
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A release that came to its end. `report` is about all artifacts, those that could not be made, too."""

    steps: Sequence[Ended]
    names: Sequence[str]
    report: Report

    @property
    def exit_code(self) -> ExitCode:
        failed = [each.code for each in self.steps if each.end is End.FAILED]
        return gravest([*failed, *map(_code, self.report.results)])

    @property
    def n_done(self) -> int:
        return sum(each.end is End.DONE for each in self.steps)

    def to_json(self) -> dict[str, Any]:
        artifacts = zip(self.names, self.report.results, strict=True)
        return {
            "exit_code": int(self.exit_code),
            "steps": [each.to_json() for each in self.steps],
            "artifacts": [{"name": name, **result.to_json()} for name, result in artifacts],
        }


def _code(result: ArtifactResult) -> ExitCode:
    """The code of one artifact, which a release must not leave unrun."""
    if result.verdict is Verdict.FAIL:
        return ExitCode.QUALITY
    if result.verdict is Verdict.SKIPPED:
        return ExitCode.MISSING_BACKEND
    return ExitCode.OK if result.is_good else ExitCode.BUDGET


def gravest(codes: Iterable[ExitCode]) -> ExitCode:
    """The one that a run of several things ends with."""
    return min(codes, key=_GRAVITY.index, default=ExitCode.OK)
