"""Peak memory of a conversion in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What wait4 says of a child starts with what its parent had at the fork, so that the child reads its own high-water mark.
_SCRIPT = """
import atexit, pathlib, runpy, sys
def note():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    pathlib.Path(PEAK).write_text(next(line for line in lines if line.startswith("VmHWM")).split()[1])
PEAK = sys.argv.pop(1)
atexit.register(note)
if len(sys.argv) > 1:
    runpy.run_module("lfm_convert", run_name="__main__")
"""


def peak_bytes(scratch: Path, arguments: Sequence[object] = ()) -> int:
    """Peak resident bytes of `lfm-convert` with these arguments; without any, of the interpreter alone."""
    peak = scratch / "peak-kib"
    command = [sys.executable, "-P", "-c", _SCRIPT, str(peak), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1024 * int(peak.read_text())
