"""False alarms and misses of the validator on models that no limit was chosen on.

    python benchmarks/false_alarms.py --cache FOLDER [--seeds 60] [--artifacts 12] [--bugs 4] [--targets gguf,onnx,mlx,coreml] [--jobs 2]

Each seed is a small model of its own (tests/support/sweep_models.py), made once and kept in the cache with what was
found, so that a run that was ended goes on. Of each, sound artifacts of a draw of quants are validated, and artifacts
in which a bug was planted; what fails of the first is a false alarm, what passes of the second a miss. The first half
of the seeds is the one that may be looked at while limits are chosen; the other half judges.
Prints counts with Wilson intervals, and every false alarm and miss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lfm_convert.convert.manifest import LAYOUT_REVISION, describe_tensors
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.target import get_target
from lfm_convert.validate.jobs import FIND_TARGET
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import Verdict
from support import sweep_bugs, sweep_models
from support.artifacts import write_artifact
from support.planted_check import few_prompts
from support.real_bugs import BROKEN_MLX, patch_runtime
from support.sweep_bugs import Bug

_Z = 1.96  # of a 95 % interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--artifacts", type=int, default=12, help="sound ones of each model")
    parser.add_argument("--bugs", type=int, default=4, help="planted in each model")
    parser.add_argument("--targets", default="gguf,onnx,mlx,coreml")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    one = partial(
        kept,
        options.cache,
        targets=options.targets.split(","),
        n_sound=options.artifacts,
        n_bugs=options.bugs,
    )
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for seed, found in enumerate(pool.map(one, range(options.seeds))):
            rows += found
            print(f"seed {seed}: {sum(row['is_wrong'] for row in rows)} wrong of {len(rows)} so far", flush=True)
    table(rows, options.seeds)


def kept(cache: Path, seed: int, **options: Any) -> list[dict[str, Any]]:
    """What was found of a seed, now or by an earlier run."""
    path = cache / f"found-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(examine(cache, seed, **options), indent=1))
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def examine(cache: Path, seed: int, *, targets: list[str], n_sound: int, n_bugs: int) -> list[dict[str, Any]]:
    """What a validation said of every artifact of a seed's model."""
    graph = open_graph(sweep_models.model(cache, seed))
    rng = Random(seed)
    quants = [(target, policy.name) for target in targets for policy in get_target(target).policies]
    if not get_target("gguf").missing() and graph.config.family.name == "lfm3":
        quants = [each for each in quants if each[0] != "gguf"] + [
            ("gguf", "F32"),
            ("gguf", "Q4_K_M"),
            ("gguf", "Q8_0"),
        ]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for target, quant in rng.sample(quants, min(n_sound, len(quants))):
            rows.append(_one(graph, graph, target, quant, Path(name) / f"{target}-{quant}", seed))
        bugs = [bug for bug in sweep_bugs.BUGS if bug.is_possible(graph) and ("mlx" in targets or not bug.runtime)]
        for bug in rng.sample(bugs, min(n_bugs, len(bugs))):
            target, quant = rng.choice([each for each in quants if not bug.runtime or each[0] == "mlx"])
            wrong = bug.plant(graph, rng, Path(name) / "mistaken")
            rows.append(_one(graph, wrong.graph, target, quant, Path(name) / "bug", seed, bug, wrong.where))
            shutil.rmtree(Path(name) / "bug", ignore_errors=True)
            shutil.rmtree(Path(name) / "mistaken", ignore_errors=True)
    return [row for row in rows if row]


def _one(
    graph: WeightGraph,
    stored: WeightGraph,
    target: str,
    quant: str,
    folder: Path,
    seed: int,
    bug: Bug | None = None,
    where: str = "",
) -> dict[str, Any]:
    """A row: an artifact of `stored`, validated against `graph`; empty if the target cannot express it."""
    try:
        artifact = write_artifact(stored, target, quant, folder)
        tensors = describe_tensors(get_target(target).plan(stored, quant))
    except UsageError:
        return {}
    artifact = replace(artifact, entry={"layout": LAYOUT_REVISION, "tensors": tensors})
    if bug and bug.runtime:
        patch_runtime(bug.runtime)
    finder = BROKEN_MLX if bug and bug.runtime else FIND_TARGET
    result = validate([artifact], graph, prompts=few_prompts(), threads=1, find_target=finder).results[0]
    is_failed = result.verdict is Verdict.FAIL
    ratios = {gate.name: gate.value / gate.limit if gate.limit else gate.value for gate in result.gates}
    return {
        "seed": seed, "model": graph.folder.name, "is_trained": sweep_models.is_trained(seed), "target": target,
        "quant": quant, "bug": bug.name if bug else "", "verdict": result.verdict.value, "message": result.message,
        "is_wrong": result.verdict is not Verdict.SKIPPED and is_failed is not bool(bug),
        "is_named": not bug or where in result.message,
        "ratios": {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)},
    }  # fmt: skip


def table(rows: list[dict[str, Any]], n_seeds: int) -> None:
    run = [row for row in rows if row["verdict"] != Verdict.SKIPPED.value]
    print("\n| models | sound artifacts | false alarms | 95 % | planted bugs | missed | 95 % | not named |")
    print("|---|--:|--:|---|--:|--:|---|--:|")
    for half, wanted in (("tuning half", range(n_seeds // 2)), ("judging half", range(n_seeds // 2, n_seeds))):
        sound = [row for row in run if row["seed"] in wanted and not row["bug"]]
        bugs = [row for row in run if row["seed"] in wanted and row["bug"]]
        alarms, missed = (sum(row["is_wrong"] for row in each) for each in (sound, bugs))
        unnamed = sum(not row["is_named"] and not row["is_wrong"] for row in bugs)
        cells = (len(sound), alarms, wilson(alarms, len(sound)), len(bugs), missed, wilson(missed, len(bugs)), unnamed)
        print(f"| {half}, {len(wanted)} | {' | '.join(map(str, cells))} |")
    for row in run:
        if row["is_wrong"] or not row["is_named"]:
            kind = "false alarm" if not row["bug"] else "missed" if row["is_wrong"] else "not named"
            print(f"- {kind}: {row['model']} {row['target']} {row['quant']} {row['bug']}: {row['message']}")


def wilson(n_events: int, n: int) -> str:
    """The interval of a share."""
    if not n:
        return "–"
    share, spread = n_events / n, _Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + spread / 4 / n) / (1 + spread)
    return f"{max(0.0, middle - half):.1%} … {middle + half:.1%}"


if __name__ == "__main__":
    main()
