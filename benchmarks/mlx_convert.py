"""Whole conversions beside mlx_lm.convert's: peak memory, processor and wall time, and whether the values are equal.

    python benchmarks/mlx_convert.py [--dense FOLDER] [--moe FOLDER] [QUANT …]

Each conversion is a process of its own, one after the other, ours then theirs. Checkpoints of 1.2 B parameters
(2.3 GB each) are generated into a temporary folder unless given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Options of `mlx_lm.convert`
PEER = {
    "8bit": ("-q", "--q-bits", "8"),
    "4bit": ("-q", "--q-bits", "4"),
    "mxfp4": ("-q", "--q-mode", "mxfp4"),
    "bf16": (),
}
KINDS = {"dense": "dense-1.2b", "moe": "moe-1.2b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path)
    parser.add_argument("quants", nargs="*", default=["8bit", "4bit"])
    arguments = parser.parse_args()
    print(f"{'':11} {'RSS GB, ours / mlx_lm':>22} {'CPU s':>20} {'ratio':>6} {'wall s':>15} {'GB':>6}  values")
    with tempfile.TemporaryDirectory() as name:
        for kind, preset in KINDS.items():
            checkpoint = getattr(arguments, kind) or generate(Path(name) / preset, preset)
            for quant in arguments.quants:
                print(row(kind, quant, checkpoint, Path(name)), flush=True)


def generate(folder: Path, preset: str) -> Path:
    script = ROOT / "tests" / "support" / "checkpoints.py"
    subprocess.run([sys.executable, script, "--kind", preset, folder], check=True, stdout=sys.stderr)
    return folder


def row(kind: str, quant: str, checkpoint: Path, scratch: Path) -> str:
    out, theirs = scratch / "ours", scratch / "theirs"
    ours = measure("-m", "lfm_convert", checkpoint, "-t", "mlx", "-q", quant, "-o", out, "--no-validate")
    peer = measure("-m", "mlx_lm", "convert", "--hf-path", checkpoint, "--mlx-path", theirs, *PEER[quant])
    (mine,) = (file.parent for file in out.glob("*/config.json"))
    size = sum(file.stat().st_size for file in mine.iterdir()) / 1e9
    # in a process of its own: what this one holds would count for the children it starts
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        same = "equal" if pool.submit(equal, mine, theirs).result() else "DIFFER"
    shutil.rmtree(out)
    shutil.rmtree(theirs)
    return (
        f"{kind:5} {quant:5} {ours.rss_gb:13.2f} / {peer.rss_gb:5.2f} {ours.cpu_s:11.1f} / {peer.cpu_s:5.1f} "
        f"{ours.cpu_s / peer.cpu_s:7.2f} {ours.wall_s:7.1f} / {peer.wall_s:4.1f} {size:6.2f}  {same}"
    )


@dataclass(frozen=True)
class Usage:
    """What a process took, as the kernel counted it."""

    rss_gb: float
    cpu_s: float
    wall_s: float


def measure(*arguments: object) -> Usage:
    began = time.monotonic()
    command = [sys.executable, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed with {status}")
    return Usage(usage.ru_maxrss * 1024 / 1e9, usage.ru_utime + usage.ru_stime, time.monotonic() - began)


def equal(mine: Path, theirs: Path) -> bool:
    """Whether two folders hold the same arrays: names, types, shapes and bytes."""
    import mlx.core as mx

    found, expected = (
        {
            name: array
            for file in sorted(folder.glob("model*.safetensors"))
            for name, array in mx.load(str(file)).items()
        }
        for folder in (mine, theirs)
    )
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        and bool(mx.array_equal(found[name], array).item())
        for name, array in expected.items()
    )


if __name__ == "__main__":
    main()
