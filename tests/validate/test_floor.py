"""The checkpoint against itself, and what the gates make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lfm_convert.convert.model.forward import Forward
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.validate.execution import Arithmetic, judge_execution, judge_experts
from lfm_convert.validate.experts import LayerExperts, agreement, compare_experts, routed
from lfm_convert.validate.floor import Floor, measure_floor
from lfm_convert.validate.gates import judge, raised_to
from lfm_convert.validate.metrics import Metrics, score_prompt, summarize
from lfm_convert.validate.prompts import EncodedPrompt

PROMPTS = tuple(EncodedPrompt(f"p{n}", (1, *range(30, 30 + n))) for n in (40, 80))


@pytest.fixture(scope="module")
def floor(moe_graph: WeightGraph) -> Floor:
    return measure_floor(moe_graph, PROMPTS)


def _kld(floor: Floor, arithmetic: Arithmetic) -> float:
    return floor.distances[arithmetic].metrics.kld_mean


def test_coarser_arithmetic_is_further_from_the_checkpoint(floor: Floor) -> None:
    exact, half, int8 = (_kld(floor, arithmetic) for arithmetic in Arithmetic)
    assert 0 < exact < 1e-9 < half < int8
    assert 0 < floor.tie < 1e-3
    shares = [floor.distances[arithmetic].experts_agree for arithmetic in Arithmetic]
    assert shares[0] == 1 and shares[0] >= (shares[1] or 0) >= (shares[2] or 0) > 0.8


def test_a_dense_model_has_no_experts_to_agree_on(dense_graph: WeightGraph) -> None:
    found = measure_floor(dense_graph, PROMPTS)
    assert [distance.experts_agree for distance in found.distances.values()] == [None] * 3
    assert not found.routed


def test_it_is_the_same_every_time(floor: Floor, moe_graph: WeightGraph) -> None:
    assert measure_floor(moe_graph, PROMPTS).to_json() == floor.to_json()


def _perfect(**changes: float) -> Metrics:
    logits = np.random.default_rng(0).normal(size=(120, 9)).astype(np.float32)
    found = summarize([score_prompt(EncodedPrompt("p", tuple([1] * 120)), logits, logits)])
    return replace(found, **changes)


def test_a_limit_is_never_tighter_than_twice_the_floor() -> None:
    measured = _perfect(kld_mean=0.01, same_top1=0.95)
    tight = {gate.name: gate for gate in judge(measured, "f16", is_moe=False)}
    assert not tight["kld_mean"].passed and not tight["same_top1"].passed
    assert "Olive" in tight["kld_mean"].source
    floor = _perfect(kld_mean=0.006, same_top1=0.97)
    eased = {gate.name: gate for gate in judge(measured, "f16", is_moe=False, floor=floor)}
    assert eased["kld_mean"].passed and eased["kld_mean"].limit == pytest.approx(0.012)
    assert eased["same_top1"].passed and eased["same_top1"].limit == pytest.approx(0.94)
    assert "measured floor 0.006" in eased["kld_mean"].source
    assert eased["kld_p999"] == tight["kld_p999"]


def test_a_floor_below_the_limit_changes_nothing() -> None:
    measured, floor = _perfect(kld_mean=0.01), _perfect(kld_mean=1e-5)
    assert judge(measured, "f16", is_moe=True, floor=floor) == judge(measured, "f16", is_moe=True)
    assert judge_execution(measured, Arithmetic.INT8, is_moe=False, floor=floor) == judge_execution(
        measured, Arithmetic.INT8, is_moe=False
    )


def test_nan_passes_no_raised_limit() -> None:
    gate = judge(_perfect(kld_mean=float("nan")), "f16", is_moe=False, floor=_perfect(kld_mean=1.0))[1]
    assert gate.name == "kld_mean" and not gate.passed
    assert not raised_to(replace(gate, limit=0.1), float("nan")).passed


def test_a_tie_that_rounding_turned_over_is_no_difference() -> None:
    reference = np.array([[2.0, 2.0 - 1e-5, 0.0], [2.0, 1.0, 0.0]] * 60, np.float32)
    artifact = reference.copy()
    artifact[0, 1] = 2.1
    scores = [score_prompt(EncodedPrompt("p", tuple([1] * 120)), reference, artifact)]
    assert summarize(scores).n_ties == 0
    eased = summarize(scores, tie=1e-4)
    assert eased.n_ties == 1 and eased.same_top1 == pytest.approx(119 / 120)
    assert {g.name: g.passed for g in judge(eased, "f32", is_moe=False)}["same_top1"]
    artifact[1, 1] = 2.1  # no tie
    eased = summarize([score_prompt(EncodedPrompt("p", tuple([1] * 120)), reference, artifact)], tie=1e-4)
    assert not {g.name: g.passed for g in judge(eased, "f32", is_moe=False)}["same_top1"]


def test_agreement_counts_sets_in_any_order() -> None:
    first = {2: np.array([[1, 2], [3, 4]])}
    assert agreement(first, {2: [[2, 1], [4, 3]]}) == {2: 1.0}
    assert agreement(first, {2: [[2, 1], [4, 5]]}) == {2: 0.75}
    with pytest.raises(ValueError, match="layers"):
        agreement(first, {1: [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match="shape"):
        agreement(first, {2: [[1, 2]]})


def test_the_layer_that_agrees_least_is_named(moe_graph: WeightGraph) -> None:
    forward = Forward(moe_graph)
    forward.prefill([PROMPTS[0].token_ids])
    seen = {layer: chosen.copy() for layer, chosen in routed(forward).items()}
    seen[2][:, 0] = (seen[2][:, 0] + 1) % 8
    layers = compare_experts(seen, routed(forward), routed(forward))
    (gate,) = judge_experts(layers, Arithmetic.FLOAT32, None)
    assert not gate.passed and gate.where == "layer 2"
    assert judge_experts(compare_experts(None, routed(forward), routed(forward)), Arithmetic.INT8, None) == []
    assert LayerExperts(1, 1.0, 1.0) in layers
