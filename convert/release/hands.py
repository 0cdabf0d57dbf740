"""Who carries out the steps of a release: this process one after the other, or others for it (`apart.py`)."""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ...graph.errors import ExitCode
from ...graph.progress import SILENT, Progress
from ..failures import explained
from ..stopping import raise_if_heard
from .outcome import End, Ended
from .site import Site, Step

_FAILED = (End.FAILED, End.SKIPPED)


class Hands(ABC):
    """What failed stops only what needs it; a signal ends all."""

    def check(self, site: Site, steps: Sequence[Step]) -> None:  # noqa: B027 (this process can do what it has planned)
        """Raises what stands in the way of the steps, before any work."""

    @abstractmethod
    def bring(self, steps: Sequence[Step], progress: Progress = SILENT) -> dict[Step, Ended]:
        """The end of each step that was come to: of all but those that nobody demanded."""

    def close(self) -> None:  # noqa: B027 (nobody else was asked)
        """Lets go of whoever was asked to help."""


class InTurn(Hands):
    """This process, one step after the other."""

    def bring(self, steps: Sequence[Step], progress: Progress = SILENT) -> dict[Step, Ended]:
        ends: dict[Step, Ended] = {}
        for step in steps:
            if not step.on_demand:
                self._bring(step, ends, progress)
        return ends

    def _bring(self, step: Step, ends: dict[Step, Ended], progress: Progress) -> None:
        """A step's end: as it was, or done now after what it needs."""
        if step in ends:
            return
        for on_demand in (False, True):
            needs = [need for need in step.needs if need.on_demand == on_demand]
            for need in needs:
                self._bring(need, ends, progress)
            ended = skipped(step, needs, ends) or (None if on_demand else left(step, progress))
            if ended is not None:
                ends[step] = ended
                return
        ends[step] = carried_out(step, progress)


def skipped(step: Step, needs: Sequence[Step], ends: Mapping[Step, Ended]) -> Ended | None:
    """The end of a step that needs one that failed; None if it needs none."""
    missing = next((ends[need] for need in needs if ends[need].end in _FAILED), None)
    return None if missing is None else Ended(step=step, end=End.SKIPPED, message=missing.message)


def left(step: Step, progress: Progress) -> Ended | None:
    """The end of a step that was done before, or of which that cannot be told; None if it is to do."""
    start = time.monotonic()
    try:
        return Ended(step=step, end=End.LEFT) if step.is_done() else None
    except Exception as error:
        return failed(step, error, time.monotonic() - start, progress)


def carried_out(step: Step, progress: Progress) -> Ended:
    """The end of a step that is carried out now, by this process."""
    start = time.monotonic()
    try:
        step.carry_out()
    except Exception as error:
        return failed(step, error, time.monotonic() - start, progress)
    return done(step, time.monotonic() - start, progress)


def done(step: Step, seconds: float, progress: Progress) -> Ended:
    """The end of a step that came to it."""
    progress.note(f"{step.label}: done in {seconds:.1f} s")
    return Ended(step=step, end=End.DONE, seconds=seconds)


def failed(step: Step, error: Exception, seconds: float, progress: Progress) -> Ended:
    """The end of a step that did not. Raises: Stopped if the failure came of a signal."""
    raise_if_heard(error)
    code, sentence = explained(error)
    if code is ExitCode.INTERNAL:  # there is no second run in which --debug would show it
        progress.note("".join(traceback.format_exception(error)))
    progress.note(f"{step.label}: failed: {sentence}")
    return Ended(step=step, end=End.FAILED, seconds=seconds, code=code, message=sentence)
