"""A result that was kept is the result that was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.budgets import BudgetCheck
from lfm_convert.validate.execution import Arithmetic
from lfm_convert.validate.experts import LayerExperts
from lfm_convert.validate.floor import Distance
from lfm_convert.validate.gates import Failure, Part, at_most
from lfm_convert.validate.kept_results import from_record, to_record
from lfm_convert.validate.localize import LayerError, Location, Recovery
from lfm_convert.validate.metrics import Metrics, PromptMean, Worst
from lfm_convert.validate.probes import CacheCheck, Probe
from lfm_convert.validate.results import (
    ArtifactResult,
    Continuation,
    Excerpt,
    GreedyCheck,
    Occasion,
    Report,
    Verdict,
)
from lfm_convert.validate.stops import StopCheck
from lfm_convert.validate.weights import TensorError

ARTIFACT = Artifact(Path("/a/b.gguf"), Path("/a"), "gguf", "Q4_0", "q4", (Path("/a/b.gguf"),))
METRICS = Metrics(
    n_prompts=2, n_positions=9, finite=True, kld_mean=0.1 + 0.2, kld_se=math.nan, kld_median=1e-300, kld_p99=0.9,
    kld_p999=1.5, kld_max=math.inf, same_top1=1 / 3, same_top1_se=0.0, top5_overlap=1.0, ppl_ratio=1.04, ppl_ratio_se=0.01,
    prob_change_mean=-0.01, prob_change_rms=0.1, max_abs_logit=3.0, worst=(Worst("zh", 7, 15, 2.5),),
    distribution=(0, 5, 4), prompts=(PromptMean("zh", 9, 0.1, 0.9),),
)  # fmt: skip
FULL = ArtifactResult(
    artifact=ARTIFACT,
    backend="llama.cpp",
    verdict=Verdict.FAIL,
    size_bytes=7,
    budgets=(BudgetCheck("size", "phone", 7, 6, "b.gguf"),),
    run_bytes=9,
    metrics=METRICS,
    execution=METRICS,
    floor=Distance(Arithmetic.INT8, "how", (), METRICS, {3: 0.5}, (1, 2)),
    weights=(TensorError("w", "ffn_gate", None, 0.1, row=3),),
    location=Location((LayerError(0, 1.0, 2.0),), None, (Recovery(None, 0.1, 0.9),)),
    excerpts=(Excerpt("zh", 7, "before", "this", "that", 2.5),),
    gates=(at_most("line_kld", 0.3, 0.2, Part.QUALITY),),
    cache=CacheCheck((Probe("stepwise", 0.1, 0.2, 3, 4), Probe("reset", 0.1, 0.2, "zh", 4)), ("batch",)),
    experts=(LayerExperts(1, 0.9, 0.8, 40),),
    greedy=GreedyCheck(4, 2, 0.5, None, (Continuation("fr", "Il", " a", " b", " c", 0.01),)),
    stops=StopCheck(checkpoint=(2, 7), artifact={"llama.cpp": (2,)}, prompt="zh", chat=None),
    ended=Failure.LATE,
    seconds=1.5,
    not_judged={Part.WEIGHTS: "why"},
    notes=("a note",),
    message="line_kld is over",
)
EMPTY = ArtifactResult(artifact=ARTIFACT, backend="", verdict=Verdict.SKIPPED, size_bytes=0, message="pip install it")


@pytest.mark.parametrize("result", [FULL, EMPTY], ids=["full", "empty"])
def test_a_result_comes_back_as_it_was(result: ArtifactResult) -> None:
    occasion = Occasion(suite="smoke", date="2023-11-14T22:13:20Z", checkpoint_sha256="ab", tool="t")
    report = Report("LFM2", (result,), {"cpu": "x", "threads": 2}, occasion)
    found = from_record(json.loads(json.dumps(to_record(report))), ARTIFACT)
    assert repr(found) == repr(report)  # NaN is not equal to itself
    assert json.dumps(found.to_json()) == json.dumps(report.to_json())


def test_its_numbers_are_spelled_as_they_were() -> None:
    """In manifests: 0 is not 0.0."""
    result = replace(FULL, gates=(at_most("stops", 0, 0, Part.QUALITY), at_most("line_kld", 0.0, 1, Part.QUALITY)))
    record = json.loads(json.dumps(to_record(Report("model", (result,), {}, Occasion()))))
    (found,) = from_record(record, ARTIFACT).results
    assert json.dumps(found.findings()) == json.dumps(result.findings())


def test_it_lies_where_it_lies_now() -> None:
    record = to_record(Report("LFM2", (FULL,), {}))
    moved = replace(ARTIFACT, folder=Path("/c"))
    assert from_record(record, moved).results[0].artifact is moved
    assert "/a" not in json.dumps(record)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "good"},
        {"size_bytes": "7"},
        {"gates": 3},
        {"metrics": {"kld_mean": 1}},
        {"floor": 3},
        {"not_judged": []},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    record = to_record(Report("LFM2", (FULL,), {}))
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_record({**record, "result": {**record["result"], **change}}, ARTIFACT)
