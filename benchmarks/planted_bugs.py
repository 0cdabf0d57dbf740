"""Bugs in real artifacts, run by real runtimes: which gate catches each, and where the report says it is.

    python benchmarks/planted_bugs.py [--targets gguf,onnx,mlx,executorch,coreml] [--only TEXT] [--clean SEEDS]

Prints the table of docs/validation.md and ends with 1 if a bug is missed, found by another part, or not named. With
--clean, sound artifacts of that many altered copies of the bundled models are validated as well; none may fail.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.clean_artifacts import clean_failures
from support.planted_check import Finding, check_planted
from support.real_bugs import base_checkpoint, planted_bugs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="gguf,onnx,mlx")
    parser.add_argument("--only", default="", help="bugs whose name or artifact holds this")
    parser.add_argument("--clean", type=int, default=0, metavar="SEEDS")
    options = parser.parse_args()
    targets = tuple(options.targets.split(","))
    chosen = [planted for planted in planted_bugs(targets) if options.only in planted.id]
    n_missed = 0
    with tempfile.TemporaryDirectory() as name:
        graph = base_checkpoint(Path(name) / "model")
        print("| bug | artifact | caught by | the report says |\n|---|---|---|---|")
        for number, planted in enumerate(chosen):
            found = check_planted(planted, graph, Path(name) / str(number))
            n_missed += not found.is_right
            print(_row(found), flush=True)
        print(f"\n{len(chosen) - n_missed} of {len(chosen)} caught and named")
        for seed in range(options.clean):
            wrong = clean_failures(seed, targets, Path(name) / f"clean-{seed}")
            n_missed += len(wrong)
            print(f"clean, seed {seed}: {'; '.join(wrong) or 'nothing raised'}", flush=True)
    return int(n_missed > 0)


def _row(found: Finding) -> str:
    planted = found.planted
    mark = "" if found.is_right else " **MISSED**"
    return f"| {planted.bug} | {planted.target} {planted.quant} | {found.caught_by}{mark} | {found.says} |"


if __name__ == "__main__":
    sys.exit(main())
