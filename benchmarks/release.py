"""Several artifacts of one checkpoint in one release, against one command after another, and a release with nothing to do.

    python benchmarks/release.py [--shape dense-350m] [--artifacts gguf:Q4_0 onnx:q4f16 mlx:4bit coreml:int4] [--suite smoke]

A release opens and hashes the checkpoint once and runs it once for all comparisons. Printed are CPU and wall seconds of all
processes. Before anything is measured each command runs once on the bundled model, so that kernels are compiled; the disk's
cache is warm for both. The verdict on random weights may be a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from first_command import generate
from processes import Tree, measure_tree

ARTIFACTS = ("gguf:Q4_0", "onnx:q4f16", "mlx:4bit", "coreml:int4")
COMMAND = [sys.executable, "-P", "-m", "lfm_convert"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="dense-350m")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--artifacts", nargs="+", default=list(ARTIFACTS), metavar="TARGET:QUANT")
    parser.add_argument("--suite", default="smoke")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        checkpoint = options.checkpoint or generate(scratch / "model", options.shape)
        pairs = [each.split(":") for each in options.artifacts]
        one_by_one(scratch / "warm", "bundled:dense", pairs, "smoke")
        apart = one_by_one(scratch / "apart", str(checkpoint.absolute()), pairs, options.suite)
        recipe = write_recipe(scratch / "recipe.toml", str(checkpoint.absolute()), pairs, options.suite)
        together, again = (measure_tree([*COMMAND, "release", recipe]) for _ in range(2))
        show("one command after another", apart)
        show("one release", [together])
        show("its second run", [again])


def one_by_one(out: Path, model: str, pairs: Sequence[Sequence[str]], suite: str) -> list[Tree]:
    return [
        measure_tree([*COMMAND, model, "-t", target, "-q", quant, "--suite", suite, "--out", out / target])
        for target, quant in pairs
    ]


def write_recipe(path: Path, model: str, pairs: Sequence[Sequence[str]], suite: str) -> Path:
    lines = [f"model = {json.dumps(model)}", "[validation]", f'suite = "{suite}"']
    for target, quant in pairs:
        lines += ["[[artifacts]]", f'target = "{target}"', f'quants = ["{quant}"]']
    path.write_text("\n".join(lines) + "\n")
    return path


def show(what: str, trees: Sequence[Tree]) -> None:
    cpu, wall = (sum(getattr(tree, name) for tree in trees) for name in ("cpu_s", "wall_s"))
    codes = ", ".join(str(tree.code) for tree in trees)
    print(f"{what:26} {cpu:8.1f} CPU s {wall:8.1f} s, exit {codes}", flush=True)


if __name__ == "__main__":
    main()
