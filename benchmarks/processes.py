"""Runs a process and says what the kernel counted of it: seconds, memory."""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """A process that ended well. Units: seconds, GB (10^9 bytes); memory is the peak of the process itself."""

    output: str
    wall_s: float
    cpu_s: float
    anonymous_gb: float
    rss_gb: float


def measure(command: Sequence[object]) -> Measured:
    """Runs a process to its end, sampling its memory. Raises SystemExit if it fails."""
    began, before = time.monotonic(), _children_s()
    peaks = {"RssAnon": 0, "VmHWM": 0}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([str(part) for part in command], stdout=output, stderr=errors)
        while child.poll() is None:
            for key, n_bytes in _memory(child.pid):
                peaks[key] = max(peaks[key], n_bytes)
            time.sleep(0.02)
        output.seek(0)
        printed = output.read()
        if child.returncode:
            errors.seek(0)
            raise SystemExit(f"{errors.read()}\n{' '.join(map(str, command))}: failed with {child.returncode}")
    used = {key: n_bytes / 1e9 for key, n_bytes in peaks.items()}
    return Measured(printed, time.monotonic() - began, _children_s() - before, used["RssAnon"], used["VmHWM"])


def _memory(pid: int) -> Iterator[tuple[str, int]]:
    """Anonymous bytes now and the high-water mark of resident ones; nothing if the process has just ended.

    The mark is the program's own: exec starts it anew.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "VmHWM"):
            yield key, int(value.split()[0]) * 1024


def _children_s() -> float:
    """CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
