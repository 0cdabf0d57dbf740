"""Several artifacts of one checkpoint in one command or one release, against one command after another, and a release
with nothing to do.

    python benchmarks/release.py [--shape dense-350m] [--artifacts gguf:Q4_0 onnx:q4f16 mlx:4bit coreml:int4] [--suite smoke]
                                 [--write-only]

Each of the former opens and hashes the checkpoint once and runs it once for all comparisons. Printed are CPU and wall seconds
of all processes. With `--write-only` nothing is compared, which a release always does: then it is left out, and every row of
the checkpoint is read and widened once, which is what a target would save whose decoded rows were another's, too. Before anything is measured each command runs once on the bundled model, so that kernels are compiled; the disk's
cache is warm for both. The verdict on random weights may be a failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
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
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        checkpoint = str((options.checkpoint or generate(scratch / "model", options.shape)).absolute())
        pairs = [each.split(":") for each in options.artifacts]
        how = ["--no-validate", "--profile"] if options.write_only else ["--suite", options.suite]
        one_by_one(scratch / "warm", "bundled:dense", pairs, how)
        show("one command after another", one_by_one(scratch / "apart", checkpoint, pairs, how))
        shutil.rmtree(scratch / "apart")
        targets, quants = (",".join(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
        several = [*COMMAND, checkpoint, "-t", targets, "-q", quants, *how, "--out", scratch / "several"]
        show("one command", [measure_tree(several)])
        shutil.rmtree(scratch / "several")
        if options.write_only:
            show("every row read once", [measure_tree([sys.executable, "-P", "-c", _READ, checkpoint])])
        else:
            recipe = write_recipe(scratch / "recipe.toml", checkpoint, pairs, options.suite)
            for what in ("one release", "its second run"):
                show(what, [measure_tree([*COMMAND, "release", recipe])])


# What each target does with every row before it encodes it: its file's bytes as float32, on two threads.
_READ = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from lfm_convert.graph.opening import open_graph
pieces = []
for weight in open_graph(Path(sys.argv[1])).weights():
    step = max(1, (4 << 20) // (4 * weight.view.n_cols))
    pieces += [(weight.view, at, min(at + step, weight.view.n_rows)) for at in range(0, weight.view.n_rows, step)]
with ThreadPoolExecutor(2) as pool:
    for _ in pool.map(lambda piece: len(piece[0].rows(*piece[1:])), pieces):
        pass
"""


def one_by_one(out: Path, model: str, pairs: Sequence[Sequence[str]], how: Sequence[str]) -> list[Tree]:
    return [
        measure_tree([*COMMAND, model, "-t", target, "-q", quant, *how, "--out", out / target])
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
