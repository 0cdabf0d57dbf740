"""Steps of a release that are carried out elsewhere, by a pool that takes them as data; their results are taken here."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...graph.progress import SILENT, Progress
from ..stopping import raise_if_heard
from .errands import Errands
from .estimates import cost_of
from .hands import Hands, carried_out, done, failed, left, skipped
from .jobs import Job, JobFailed, carry_out, made_of
from .outcome import End, Ended
from .site import Site, Step
from .steps import Convert, Reference


class Pool(ABC):
    """Who carries jobs out, several at a time or one."""

    def check(self, errands: Errands, site: Site, memory: Mapping[str, int]) -> None:  # noqa: B027 (this process can)
        """Raises what stands in the way. `memory` is what each step takes, in bytes, by its label."""

    @abstractmethod
    def submit(self, job: Job, memory: int) -> None:
        """Begins a job, at once or when there is room for these bytes of memory."""

    @abstractmethod
    def wait(self) -> Mapping[str, Mapping[str, Any]]:
        """Outcomes of jobs that have come to their end, by their step; waits for the first."""

    def stop(self) -> None:  # noqa: B027 (nothing goes on by itself)
        """Ends what is under way, and takes nothing more. May be called twice."""


class Here(Pool):
    """This process, for an output that is elsewhere."""

    def __init__(self, progress: Progress = SILENT) -> None:
        self._jobs: list[Job] = []
        self._progress = progress

    def submit(self, job: Job, memory: int) -> None:
        self._jobs.append(job)

    def wait(self) -> Mapping[str, Mapping[str, Any]]:
        job = self._jobs.pop(0)
        with TemporaryDirectory(prefix="lfm-job-") as folder:
            return {job.step: carry_out(job.to_json(), Path(folder), self._progress)}


class Apart(Hands):
    """A pool's hands, for all steps that travel; this process does the others and puts in place what is made."""

    def __init__(self, pool: Pool, *, offline: bool = False) -> None:
        self._pool, self._offline = pool, offline

    def check(self, site: Site, steps: Sequence[Step]) -> None:
        errands = Errands(site, offline=self._offline)
        memory = {step.label: cost_of(step, site.preparation, {}).memory for step in steps if step.travels}
        try:
            self._pool.check(errands, site, memory)
        finally:
            errands.clear()

    def bring(self, steps: Sequence[Step], progress: Progress = SILENT) -> dict[Step, Ended]:
        if not steps:
            return {}
        errands = Errands(steps[0].site, offline=self._offline)
        try:
            return _Round(steps, self._pool, errands, progress).carry_out()
        finally:
            self._pool.stop()
            errands.clear()

    def close(self) -> None:
        self._pool.stop()


class _Round:
    """One run through the steps: each is looked at when what it needs has ended, and sent off if it is to do."""

    def __init__(self, steps: Sequence[Step], pool: Pool, errands: Errands, progress: Progress) -> None:
        self._steps, self._pool, self._errands, self._progress = steps, pool, errands, progress
        self._ends: dict[Step, Ended] = {}
        self._demanded = {step for step in steps if not step.on_demand}
        self._to_do: set[Step] = set()  # looked at, and found not to be done
        self._sent: dict[str, tuple[Step, Job, float]] = {}

    def carry_out(self) -> dict[Step, Ended]:
        while True:
            is_moving = True
            while is_moving:
                is_moving = sum(self._advance(step) for step in self._open()) > 0
            if not self._sent:
                return self._ends
            for label, outcome in self._pool.wait().items():
                self._take(label, outcome)

    def _open(self) -> list[Step]:
        """Steps that are demanded, not ended and not under way."""
        away = {step for step, _, _ in self._sent.values()}
        return [step for step in self._steps if step in self._demanded - self._ends.keys() - away]

    def _advance(self, step: Step) -> bool:
        """Takes a step as far as it can go now; whether anything has come of it."""
        needs = [need for need in step.needs if not need.on_demand]
        if not all(need in self._ends for need in [*needs, *self._before(step)]):
            return False
        if step not in self._to_do:
            ended = skipped(step, needs, self._ends) or left(step, self._progress) or _kept(step)
            if ended is not None:
                return self._end(ended)
            self._to_do.add(step)
        demanded = [need for need in step.needs if need.on_demand]
        if not all(need in self._ends for need in demanded):
            is_new = not self._demanded.issuperset(demanded)
            self._demanded.update(demanded)
            return is_new
        if (ended := skipped(step, demanded, self._ends)) is not None:
            return self._end(ended)
        if not step.travels:
            return self._end(carried_out(step, self._progress))
        return self._send(step)

    def _before(self, step: Step) -> Sequence[Step]:
        """Conversions whose turn is before a step's: where targets share a folder, the first owns the files of all."""
        if not isinstance(step, Convert):
            return []
        conversions = [each for each in self._steps if isinstance(each, Convert)]
        beside = [each for each in conversions if each.artifact.folder == step.artifact.folder]
        is_shared = len({each.artifact.plan.target for each in beside}) > 1
        return list(beside[: beside.index(step)]) if is_shared else []

    def _send(self, step: Step) -> bool:
        start = time.monotonic()
        try:
            job = self._errands.job(step)
            self._pool.submit(job, cost_of(step, step.site.preparation, {}).memory)
        except Exception as error:
            return self._end(failed(step, error, time.monotonic() - start, self._progress))
        self._sent[step.label] = (step, job, start)
        return True

    def _take(self, label: str, outcome: Mapping[str, Any]) -> None:
        step, job, start = self._sent.pop(label)
        for note in outcome["notes"]:
            self._progress.note(f"{label}: {note}")
        try:
            made = made_of(outcome, self._errands.place(job))
            step.take(made)
        except JobFailed as error:
            raise_if_heard(error)
            self._progress.note(f"{label}: failed: {error}")
            seconds = time.monotonic() - start
            self._end(Ended(step=step, end=End.FAILED, seconds=seconds, code=error.code, message=str(error)))
        except Exception as error:
            self._end(failed(step, error, time.monotonic() - start, self._progress))
        else:
            self._end(done(step, made.seconds, self._progress))

    def _end(self, ended: Ended) -> bool:
        self._ends[ended.step] = ended
        ended.step.site.output.send()
        return True


def _kept(step: Step) -> Ended | None:
    """The end of a reference that an earlier run keeps for all machines."""
    return Ended(step=step, end=End.LEFT) if isinstance(step, Reference) and step.kept() is not None else None
