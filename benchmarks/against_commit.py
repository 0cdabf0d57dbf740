"""Conversions by an older commit and by this working tree, in turns: CPU and wall seconds, memory, bytes.

    python benchmarks/against_commit.py [--commit HASH] [--rounds 3] [TARGET:QUANT …]

The commit is checked out beside the tree for as long as the run takes; both use this interpreter and its packages. By
default it is the last before `graph/` existed. Models are generated: LFM2-350M's shape and a mixture of eight experts.
Nothing is validated. What is compiled at first use is compiled before anything is timed. A figure is the median of the
rounds, old and new in turns; a ratio is that of new to old, round by round, and its range is what the machine does
besides. Bytes are those of the artifact's files, whose hashes are compared.
Ends with 1 if new takes more than `--allowed` times the CPU or memory of old, in every round, or is larger. Not counted
is tokenizer_config.json, which old writes as transformers 5 reads it, and new with what older readers look for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from processes import Measured, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.checkpoints import make_checkpoint, preset

ROOT = Path(__file__).resolve().parents[1]
BEFORE_GRAPH = "89bdc5a"
CASES = ("gguf:Q4_K_M", "gguf:Q8_0", "onnx:q4f16", "mlx:8bit")
MODELS: dict[str, dict[str, Any]] = {
    "dense-350m": preset("dense-350m"),
    "moe-8x": preset("moe-1.2b") | {"num_experts": 8},
}
_TINY = preset("tiny-moe") | {"hidden_size": 256, "moe_intermediate_size": 256}
# What is compared: the heading, and the figure.
_FIGURES: dict[str, Callable[[Measured], float]] = {
    "CPU s": lambda found: found.cpu_s,
    "wall s": lambda found: found.wall_s,
    "RSS MB": lambda found: found.rss_gb * 1000,
}
_HELD_TO = ("CPU s", "RSS MB")
_GROWN = "tokenizer_config.json"


@dataclass(frozen=True)
class Converted:
    """One conversion, and the hashes and bytes of the artifact's files."""

    measured: Measured
    hashes: tuple[str, ...]
    n_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default=BEFORE_GRAPH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--allowed", type=float, default=1.1, help="the ratio that is still no worse")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    parser.add_argument("cases", nargs="*", default=CASES)
    arguments = parser.parse_args()
    is_good = True
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name, checked_out(arguments.commit) as old:
        scratch = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        # pip compiles what it installs; where Python may not, every start would compile the sources of both
        os.environ["PYTHONPYCACHEPREFIX"] = str(scratch / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        trees = {"old": old, "new": ROOT}
        tiny = make_checkpoint(scratch / "tiny", _TINY)
        for tree in trees.values():
            refuse_other_package(tree)
            for case in arguments.cases:
                convert(tree, tiny, case, scratch / "out", jobs=arguments.jobs)
        headings = "  ".join(f"{heading + ' old':>10} {'new':>7} {'ratio':<17}" for heading in _FIGURES)
        print(f"{'model':10} {'case':11} {headings}  {'MB':>8}  bytes", flush=True)
        for model, config in MODELS.items():
            checkpoint = make_checkpoint(scratch / model, config)
            for case in arguments.cases:
                turns = [
                    turn(trees, checkpoint, case, scratch / "out", jobs=arguments.jobs, is_odd=bool(number % 2))
                    for number in range(arguments.rounds)
                ]
                print(f"{model:10} {case:11} {row(turns)}", flush=True)
                is_good &= not is_worse(turns, allowed=arguments.allowed)
    sys.exit(0 if is_good else 1)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder that holds a commit, as a worktree which goes afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "tree")
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", folder, commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def command(tree: Path, *words: object) -> list[object]:
    """This interpreter with the package of a tree."""
    return ["env", f"PYTHONPATH={tree / '.typing'}", sys.executable, "-P", *words]


def refuse_other_package(tree: Path) -> None:
    """Raises: SystemExit if the package that runs is not the tree's."""
    printed = measure(command(tree, "-c", "import lfm_convert.targets as t; print(t.__path__[0])")).output
    found = Path(printed.strip()).resolve()
    if found != (tree / "targets").resolve():
        raise SystemExit(f"{tree}: {found} runs in its place")


def convert(tree: Path, checkpoint: Path, case: str, out: Path, *, jobs: int) -> Converted:
    """One conversion in a process of its own."""
    target, _, quant = case.partition(":")
    words = ["-m", "lfm_convert", checkpoint, "--target", target, "--quant", quant, "--out", out, "--jobs", jobs]
    measured = measure(command(tree, *words, "--no-validate"))
    (entry,) = json.loads((out / "lfm-convert.json").read_text())["artifacts"]
    files = sorted(entry["files"], key=lambda file: str(file["path"]))
    n_bytes = sum(file["bytes"] for file in files if not str(file["path"]).endswith(_GROWN))
    subprocess.run(["rm", "-r", out], check=True)
    return Converted(measured, tuple(file["sha256"] for file in files), n_bytes)


def turn(
    trees: Mapping[str, Path], checkpoint: Path, case: str, out: Path, *, jobs: int, is_odd: bool
) -> dict[str, Converted]:
    """Each tree once; the first in one turn is the last in the next, since what a run leaves in memory meets the other."""
    order = sorted(trees, reverse=is_odd)
    return {which: convert(trees[which], checkpoint, case, out, jobs=jobs) for which in order}


def ratios(turns: Sequence[dict[str, Converted]], figure: Callable[[Measured], float]) -> list[float]:
    """New to old, round by round."""
    return [figure(turn["new"].measured) / figure(turn["old"].measured) for turn in turns]


def is_worse(turns: Sequence[dict[str, Converted]], *, allowed: float) -> bool:
    """Whether new takes more than is allowed in every round, or is larger."""
    is_larger = any(turn["new"].n_bytes > turn["old"].n_bytes for turn in turns)
    return is_larger or any(min(ratios(turns, _FIGURES[heading])) > allowed for heading in _HELD_TO)


def row(turns: Sequence[dict[str, Converted]]) -> str:
    cells = []
    for heading, figure in _FIGURES.items():
        old, new = (median(figure(turn[which].measured) for turn in turns) for which in ("old", "new"))
        found, digits = ratios(turns, figure), 0 if heading == "RSS MB" else 1
        ratio = f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
        cells.append(f"{old:10.{digits}f} {new:7.{digits}f} {ratio:<17}")
    sizes = {turn[which].n_bytes for turn in turns for which in turn}
    size = "/".join(f"{n_bytes / 1e6:.1f}" for n_bytes in sorted(sizes))
    is_same = len({turn[which].hashes for turn in turns for which in turn}) == 1
    return "  ".join(cells) + f"  {size:>8}  {'same' if is_same else 'OTHER'}"


if __name__ == "__main__":
    main()
