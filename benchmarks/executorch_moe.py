"""The two forms of a mixture of experts in ExecuTorch beside each other: file, export, memory and speed.

    python benchmarks/executorch_moe.py [--checkpoint FOLDER] [--layers 4] [--rounds 3]

The model has LFM2-8B-A1B's width and experts and only its first layers, two dense, the rest mixtures; milliseconds are
those of the whole of it. Each export and each run is a process of its own, the forms run by turns with two threads,
and the row is the best of the rounds: what disturbs a machine only ever adds. Anonymous memory is what a process
holds after it has answered, the mapped file apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from full_size import generate
from processes import measure

_FORMS = ("experts", "moe_ffn")
_PREFILLS = (8, 32)
_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="one generated before")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.run)))
        return
    with tempfile.TemporaryDirectory() as name:
        checkpoint = arguments.checkpoint or Path(name) / "LFM2-MoE"
        if not arguments.checkpoint:
            generate(checkpoint, "moe-8b", arguments.layers)
        rows = {form: export(checkpoint, Path(name) / form, form) for form in _FORMS}
        for _ in range(arguments.rounds):
            for form, row in rows.items():
                command = [sys.executable, __file__, "--run", Path(name) / form]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                    row[key] = min(row.get(key, value), value)
    for form, row in rows.items():
        print(f"{form:8} " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()))


def export(checkpoint: Path, out: Path, form: str) -> dict[str, float]:
    command = [sys.executable, "-P", "-m", "lfm_convert", checkpoint, "--target", "executorch", "--quant", "8da4w"]
    done = measure([*command, "--et-moe", form, "--out", out, "--no-validate"])
    return {
        "file MB": next(out.glob("*.pte")).stat().st_size / 1e6,
        "export CPU s": done.cpu_s,
        "export anonymous MB": done.anonymous_gb * 1e3,
    }


def run(folder: Path) -> dict[str, float]:
    """Runs in the measured process. Units: seconds, milliseconds, MB."""
    from lfm_convert.convert.pipeline import find_artifacts
    from lfm_convert.targets.executorch.runner import ExecutorchRunner

    (artifact,) = find_artifacts(folder)
    before = _anonymous_mb()
    began = time.perf_counter()
    runner = ExecutorchRunner(artifact.path, threads=2)
    found = {"load s": time.perf_counter() - began}
    for n in _PREFILLS:
        found[f"prefill {n} ms"] = min(_milliseconds(runner, list(range(100, 100 + n)), 0) for _ in range(3))
    start = max(_PREFILLS)
    found["decode ms"] = min(_milliseconds(runner, [200 + step], start + step) for step in range(_STEPS))
    return found | {"anonymous MB": _anonymous_mb() - before}


def _milliseconds(runner, tokens: list[int], start: int) -> float:
    began = time.perf_counter()
    runner.call(tokens, start)
    return (time.perf_counter() - began) * 1e3


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
