"""Runs a process and says what the kernel counted of it: seconds, memory."""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


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


@dataclass(frozen=True)
class Tree:
    """A command and its descendants. Units: seconds, bytes; `peaks` are resident and anonymous memory, by what each is."""

    code: int
    wall_s: float
    cpu_s: float
    peaks: dict[str, tuple[int, int]]

    def show(self) -> None:
        print(f"exit {self.code}, {self.cpu_s:.0f} CPU s, {self.wall_s:.0f} s")
        for name, (rss, anonymous) in sorted(self.peaks.items(), key=lambda item: -item[1][0]):
            print(f"{name}: {rss / 1e9:.2f} GB resident, {anonymous / 1e9:.2f} GB anonymous", flush=True)


def measure_tree(command: Sequence[object]) -> Tree:
    """Runs a command that shows what it prints, sampling the memory of all its processes."""
    began, before = time.monotonic(), _children_s()
    child = subprocess.Popen([str(part) for part in command])
    peaks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    while child.poll() is None:
        try:
            process = psutil.Process(child.pid)
            for each in (process, *process.children(recursive=True)):
                memory, name = each.memory_info(), "command" if each.pid == child.pid else _name(each)
                rss, anonymous = peaks[name]
                peaks[name] = max(rss, memory.rss), max(anonymous, memory.rss - memory.shared)
        except psutil.Error:
            pass
        time.sleep(0.05)
    return Tree(child.returncode, time.monotonic() - began, _children_s() - before, dict(peaks))


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    return next((word.rpartition(".")[2] for word in words if word.startswith("lfm_convert.")), "a runtime's child")


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
