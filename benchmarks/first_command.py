"""The README's first command, whole, on a generated model of LFM2-350M's shape: what each of its processes takes.

    python benchmarks/first_command.py [--target onnx --quant q4f16] [--suite standard] [--checkpoint FOLDER]

Converts, runs and compares, as a user does. Printed are CPU seconds of all processes, wall seconds, and of the largest
process the peak of resident and of anonymous memory: what is resident and not anonymous are mapped files. Random weights
lose more by rounding than trained ones, so that the verdict may be a failure. The tokenizer is the bundled one of 1,024
words, which makes more tokens of most prompts than one of 65,536 would.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lfm_convert.convert import bundled
from support.checkpoints import make_checkpoint, preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--quant", default="q4f16")
    parser.add_argument("--shape", default="dense-350m")
    parser.add_argument("--suite", default="smoke", help="smoke is what the README's command runs")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = options.checkpoint or _generated(Path(scratch, "model"), options.shape)
        arguments = [checkpoint, "--target", options.target, "--quant", options.quant, "--suite", options.suite]
        arguments += ["--out", Path(scratch, "out")]
        command = [sys.executable, "-P", "-m", "lfm_convert", *map(str, arguments)]
        before, began = _cpu_s(), time.monotonic()
        child = subprocess.Popen(command)
        peaks = _watch(child)
        cpu_s, wall_s = _cpu_s() - before, time.monotonic() - began
    print(f"exit {child.returncode}, {cpu_s:.0f} CPU s, {wall_s:.0f} s")
    for name, (rss, anonymous) in sorted(peaks.items(), key=lambda item: -item[1][0]):
        print(f"{name}: {rss / 1e9:.2f} GB resident, {anonymous / 1e9:.2f} GB anonymous")


def _generated(folder: Path, shape: str) -> Path:
    make_checkpoint(folder, preset(shape), tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled.path("dense") / name, folder)
    return folder


def _watch(child: subprocess.Popen[bytes]) -> dict[str, tuple[int, int]]:
    """Peaks of the process and its descendants, by what they are, in bytes."""
    peaks: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    while child.poll() is None:
        try:
            process = psutil.Process(child.pid)
            for each in (process, *process.children(recursive=True)):
                memory, name = each.memory_info(), "command" if each.pid == child.pid else _name(each)
                found = peaks[name]
                found[0], found[1] = max(found[0], memory.rss), max(found[1], memory.rss - memory.shared)
        except psutil.Error:
            pass
        time.sleep(0.05)
    return {name: (rss, anonymous) for name, (rss, anonymous) in peaks.items()}


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    return next((word.rpartition(".")[2] for word in words if word.startswith("lfm_convert.")), "a runtime's child")


def _cpu_s() -> float:
    """Of the children that have ended, and theirs. Units: seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
