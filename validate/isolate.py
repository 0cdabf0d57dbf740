"""Runs a job in a worker process, and says in one sentence what became of a worker that broke."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..graph.errors import DiskError
from ..graph.units import format_size
from .held_memory import HeldMemory
from .jobs import Job, Outcome, Status, load_outcome, load_step
from .steps import Step
from .stored_logits import StoredLogits, take_logits

_LOG = "stderr.log"
_POLL_S = 0.02
_LAST_WORDS = 200


def run_job(
    job: Job,
    folder: Path,
    *,
    time_limit_s: float,
    max_memory: int | None = None,
    on_logits: Callable[[int, StoredLogits], None],
    on_step: Callable[[Step], None] = lambda step: None,
) -> Outcome:
    """Runs a job in an empty folder; `on_logits` gets each prompt's logits as soon as they are there, `on_step` what
    the worker does before the first and after the last of them. `max_memory` are bytes that the worker and its
    children may hold beside the files they map.

    A crash, a limit reached or missing logits are an outcome, never an exception.
    Raises: DiskError if the temporary folder is full; whatever `on_logits` raises.
    """
    job.save(folder)
    # -P: the working directory may hold folders named like packages
    command = [sys.executable, "-P", "-m", f"{__package__}.worker", str(folder)]
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        with process:
            watch = _Watch(HeldMemory(process.pid), time.monotonic() + time_limit_s, max_memory)
            try:
                n_taken = _follow(process, job, folder, watch, on_logits, on_step)
            finally:
                process.kill()
    outcome = load_outcome(folder)
    if outcome is None:
        if watch.reached is Status.LATE:
            reason = f"did not finish within {round(time_limit_s, 1):g} s and was ended"
        elif watch.reached is Status.TOO_LARGE:
            reason = f"held more than {format_size(max_memory or 0)} beside the files it maps and was ended"
        else:
            reason = _end(process.returncode)
        outcome = Outcome(status=watch.reached or Status.FAILED, message=f"the runtime {reason}{_last_words(folder)}")
    outcome = replace(outcome, held_bytes=watch.memory.peak)
    if outcome.status is Status.DISK:
        raise DiskError(f"{folder}: {outcome.message}; set TMPDIR to a folder with more room")
    if outcome.status is Status.DONE and n_taken != len(job.prompts):
        message = f"the runtime gave logits of {n_taken} of {len(job.prompts)} prompts"
        return Outcome(status=Status.FAILED, message=message, backend=outcome.backend, held_bytes=outcome.held_bytes)
    return outcome


@dataclass
class _Watch:
    """The limits of a worker; `reached` is the one it came to."""

    memory: HeldMemory
    deadline: float
    max_memory: int | None
    reached: Status | None = None

    def is_over(self) -> bool:
        """Looks at the clock and the memory."""
        held = self.memory.look()
        if held is not None and self.max_memory is not None and held > self.max_memory:
            self.reached = Status.TOO_LARGE
        elif time.monotonic() > self.deadline:
            self.reached = Status.LATE
        return self.reached is not None


def _follow(
    process: subprocess.Popen[bytes],
    job: Job,
    folder: Path,
    watch: _Watch,
    on_logits: Callable[[int, StoredLogits], None],
    on_step: Callable[[Step], None],
) -> int:
    """Hands on logits until the worker ends or comes to a limit; how many prompts are done."""
    n_taken = 0
    while True:
        ended = process.poll() is not None  # before looking, so that nothing written last is missed
        while (logits := take_logits(folder, n_taken, vocab_size=job.n_outputs)) is not None:
            on_logits(n_taken, logits)
            logits.drop()
            n_taken += 1
        if n_taken in (0, len(job.prompts)) and (step := load_step(folder)) is not None:
            on_step(step)
        if ended or watch.is_over():
            return n_taken
        time.sleep(_POLL_S)


def _end(code: int) -> str:
    if code >= 0:
        return f"ended its process with exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"crashed with {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")


def _last_words(folder: Path) -> str:
    """`; it last said: …`, from the worker's standard error."""
    lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    printable = "".join(mark for mark in last if mark.isprintable())
    return f"; it last said: {printable[:_LAST_WORDS]}" if printable else ""
