"""Runs a job in a worker process, and says in one sentence what became of a worker that broke."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..graph.errors import DiskError
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
    on_logits: Callable[[int, StoredLogits], None],
    on_step: Callable[[Step], None] = lambda step: None,
) -> Outcome:
    """Runs a job in an empty folder; `on_logits` gets each prompt's logits as soon as they are there, `on_step` what
    the worker does before the first and after the last of them.

    A crash, a time-out or missing logits are an outcome, never an exception.
    Raises: DiskError if the temporary folder is full; whatever `on_logits` raises.
    """
    job.save(folder)
    # -P: the working directory may hold folders named like packages
    command = [sys.executable, "-P", "-m", f"{__package__}.worker", str(folder)]
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        with process:
            try:
                n_taken, in_time = _follow(process, job, folder, time.monotonic() + time_limit_s, on_logits, on_step)
            finally:
                process.kill()
    outcome = load_outcome(folder)
    if outcome is None:
        status = Status.FAILED if in_time else Status.LATE
        reason = (
            _end(process.returncode) if in_time else f"did not finish within {round(time_limit_s, 1):g} s and was ended"
        )
        return Outcome(status=status, message=f"the runtime {reason}{_last_words(folder)}")
    if outcome.status is Status.DISK:
        raise DiskError(f"{folder}: {outcome.message}; set TMPDIR to a folder with more room")
    if outcome.status is Status.DONE and n_taken != len(job.prompts):
        message = f"the runtime gave logits of {n_taken} of {len(job.prompts)} prompts"
        return Outcome(status=Status.FAILED, message=message, backend=outcome.backend)
    return outcome


def _follow(
    process: subprocess.Popen[bytes],
    job: Job,
    folder: Path,
    deadline: float,
    on_logits: Callable[[int, StoredLogits], None],
    on_step: Callable[[Step], None],
) -> tuple[int, bool]:
    """Hands on logits until the worker ends or its time is up: (prompts done, whether it ended in time)."""
    n_taken = 0
    while True:
        ended = process.poll() is not None  # before looking, so that nothing written last is missed
        while (logits := take_logits(folder, n_taken, vocab_size=job.vocab_size)) is not None:
            on_logits(n_taken, logits)
            logits.drop()
            n_taken += 1
        if n_taken in (0, len(job.prompts)) and (step := load_step(folder)) is not None:
            on_step(step)
        if ended or time.monotonic() > deadline:
            return n_taken, ended
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
