"""Memory, time and bytes of whole conversions of a generated 1.2 B-parameter mixture of experts.

    python benchmarks/convert_memory.py [--checkpoint FOLDER] [TARGET:QUANT …]

Each conversion is a process of its own, run with one and with two workers; the row says whether the
bytes were the same. RSS is above that of a bare interpreter. The checkpoint (2.4 GB) is generated
into a temporary folder unless one is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ("gguf:Q4_0", "gguf:Q8_0", "gguf:BF16", "onnx:q4f16", "onnx:q4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("cases", nargs="*", default=CASES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or generate(Path(scratch) / "moe-1.2b")
        bare = measure([sys.executable, "-c", "pass"])["rss_mb"]
        print(f"{'case':12} {'MB':>8} {'RSS MB, 1 / 2 workers':>22} {'CPU s':>14} {'wall s':>14}  same bytes")
        for case in arguments.cases:
            runs = [convert(checkpoint, case, Path(scratch) / "out", jobs) for jobs in (1, 2)]
            print(
                f"{case:12} {runs[0]['size'] / 1e6:8.1f} "
                + f"{runs[0]['rss_mb'] - bare:13.0f} / {runs[1]['rss_mb'] - bare:6.0f} "
                + f"{runs[0]['cpu_s']:6.1f} / {runs[1]['cpu_s']:5.1f} {runs[0]['wall_s']:6.1f} / {runs[1]['wall_s']:5.1f}  "
                + ("yes" if runs[0]["hashes"] == runs[1]["hashes"] else "NO"),
                flush=True,
            )


def generate(folder: Path) -> Path:
    script = ROOT / "tests" / "support" / "checkpoints.py"
    subprocess.run([sys.executable, script, "--kind", "moe-1.2b", folder], check=True, stdout=sys.stderr)
    return folder


def convert(checkpoint: Path, case: str, out: Path, jobs: int) -> dict:
    target, quant = case.split(":")
    command = [sys.executable, "-m", "lfm_convert", checkpoint, "--target", target, "--quant", quant]
    found = measure([*command, "--out", out, "--overwrite", "--no-validate", "--jobs", jobs])
    (entry,) = json.loads((out / "lfm-convert.json").read_text())["artifacts"]
    found["hashes"] = [file["sha256"] for file in entry["files"]]
    found["size"] = sum(file["bytes"] for file in entry["files"])
    for file in sorted(out.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    return found


def measure(command: list, *, stderr: int | None = None) -> dict:
    """Peak RSS and CPU seconds of a process, as the kernel counted them."""
    began = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=stderr)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))}: failed with {status}")
    assert isinstance(usage, resource.struct_rusage)
    return {
        "rss_mb": usage.ru_maxrss / 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()
