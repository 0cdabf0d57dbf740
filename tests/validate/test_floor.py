"""What rounding alone does to a model, and what the gates of execution make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.validate.execution import LEAST, ROOM, Arithmetic, is_suspicious, judge_execution, judge_experts
from lfm_convert.validate.experts import LayerExperts, agreement, compare_experts
from lfm_convert.validate.floor import Distance, Own, distance, run_own, run_with_floor
from lfm_convert.validate.metrics import PromptScore, score_prompt, summarize
from lfm_convert.validate.prompts import EncodedPrompt
from support.planted import BUGS

PROMPTS = tuple(EncodedPrompt(f"p{n}", (1, *range(30, 30 + n))) for n in (40, 80))


@pytest.fixture(scope="module")
def own(moe_graph: WeightGraph) -> Own:
    """A mixture whose matrices are stored in four bits."""
    return run_own(BUGS["four bits"].store(moe_graph), PROMPTS)


def test_coarser_arithmetic_moves_more(own: Own) -> None:
    exact, half, int8 = (distance(own, each) for each in (Arithmetic.FLOAT32, Arithmetic.FLOAT16, Arithmetic.INT8))
    assert 0 < exact.metrics.kld_mean < 1e-9 < half.metrics.kld_mean < int8.metrics.kld_mean
    shares = [min(found.experts_agree.values()) for found in (exact, half, int8) if found.experts_agree]
    assert shares[0] == 1 and shares[0] >= shares[1] >= shares[2] > 0.8
    float8, float4 = (distance(own, each).metrics.kld_mean for each in (Arithmetic.FLOAT8, Arithmetic.FLOAT4))
    assert int8.metrics.kld_mean < float8 < float4


def test_only_weights_whose_kernels_round_activations_do(dense_graph: WeightGraph) -> None:
    whole = run_own(dense_graph, PROMPTS)
    assert distance(whole, Arithmetic.INT8).metrics.kld_max == 0
    assert distance(run_own(BUGS["four bits"].store(dense_graph), PROMPTS), Arithmetic.INT8).metrics.kld_max > 1e-7


def test_blocks_of_activations_are_those_of_the_kernels() -> None:
    assert get_encoding("Q4_0").activation_block == 32 and get_encoding("Q4_K").activation_block == 256
    assert get_encoding("int4_block32_f32").activation_block == 32 and get_encoding("F16").activation_block is None


def test_a_dense_model_has_no_experts_to_agree_on(dense_graph: WeightGraph) -> None:
    found = distance(run_own(dense_graph, PROMPTS), Arithmetic.FLOAT32)
    assert found.experts_agree is None and found.solid is None
    assert judge_experts([], found) == []


def test_it_is_the_same_every_time(own: Own) -> None:
    assert distance(own, Arithmetic.INT8).to_json() == distance(own, Arithmetic.INT8).to_json()


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_both_runs_in_one_are_each_run_alone(own: Own, arithmetic: Arithmetic) -> None:
    both, floor = run_with_floor(own.graph, PROMPTS, arithmetic)
    alone = distance(own, arithmetic)
    rounding = 2e-5 * max(float(np.abs(logits[:]).max()) for logits in own.logits)
    for found, expected in zip(both.logits, own.logits, strict=True):
        assert found[:] == pytest.approx(expected[:], abs=rounding)
    assert agreement(own.routed, both.routed) == dict.fromkeys(own.routed, 1.0)
    assert both.ranked.keys() == own.ranked.keys() and floor.experts_agree == alone.experts_agree
    if arithmetic is not Arithmetic.FLOAT32:  # of which nothing but the last bits is left
        assert floor.metrics.kld_median == pytest.approx(alone.metrics.kld_median, rel=0.05)
    assert floor.metrics.kld_mean == pytest.approx(alone.metrics.kld_mean, rel=0.5)


def _scores(own: Own, forward: Forward) -> list[PromptScore]:
    logits = forward.lazy_logits([prompt.token_ids for prompt in own.prompts])
    return [score_prompt(p, a, b) for p, a, b in zip(own.prompts, own.logits, logits, strict=True)]


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_what_rounding_does_passes_and_a_bug_does_not(own: Own, arithmetic: Arithmetic) -> None:
    floor = distance(own, arithmetic)
    assert all(gate.passed for gate in judge_execution(floor.scores, floor))
    assert not is_suspicious(floor.scores, floor)
    wrong = _scores(own, BUGS["rope theta 1e4"].forward(own.graph))
    if arithmetic is Arithmetic.FLOAT4:  # activations of four bits do more than a wrong rotation: nobody could tell
        return
    assert is_suspicious(wrong, floor)
    assert arithmetic is Arithmetic.INT8 or not all(gate.passed for gate in judge_execution(wrong, floor))


def _with_kld(floor: Distance, factor: float) -> list[PromptScore]:
    return [replace(score, kld=score.kld * factor) for score in floor.scores]


def test_the_limit_is_the_models_own(own: Own) -> None:
    floor = distance(own, Arithmetic.INT8)
    room = ROOM[Arithmetic.INT8]
    assert all(gate.passed for gate in judge_execution(_with_kld(floor, 0.99 * room), floor))
    assert not any(gate.passed for gate in judge_execution(_with_kld(floor, 1.01 * room + LEAST), floor))
    named = judge_execution(_with_kld(floor, 1), floor)[-1]
    assert named.name == "execution_kld_prompt" and named.where in ("p40", "p80")


def test_nan_passes_no_gate(own: Own) -> None:
    floor = distance(own, Arithmetic.INT8)
    assert not any(gate.passed for gate in judge_execution(_with_kld(floor, float("nan")), floor))
    assert is_suspicious(_with_kld(floor, float("nan")), floor)


def test_one_prompt_that_is_far_off_is_named(own: Own) -> None:
    floor = distance(own, Arithmetic.INT8)
    scores = list(floor.scores)
    scores[0] = replace(scores[0], kld=scores[0].kld * 10)
    worst = judge_execution(scores, floor)[-1]
    assert not worst.passed and worst.where == "p40"


def test_after_a_near_tie_of_experts_float32_is_not_compared(own: Own) -> None:
    floor = replace(distance(own, Arithmetic.FLOAT32), solid=(10, 80))
    scores = list(floor.scores)
    moved = scores[0].kld.copy()
    moved[10:] = 0.5
    scores[0] = replace(scores[0], kld=moved)
    assert all(gate.passed for gate in judge_execution(scores, floor))
    assert not all(gate.passed for gate in judge_execution(scores, replace(floor, solid=(30, 80))))
    assert len(replace(floor, solid=(0, 0)).compared(scores)) == 2


def test_a_tie_that_rounding_turned_over_is_counted() -> None:
    reference = np.array([[2.0, 2.0 - 1e-5, 0.0], [2.0, 1.0, 0.0]] * 60, np.float32)
    artifact = reference.copy()
    artifact[0, 1] = 2.1
    scores = [score_prompt(EncodedPrompt("p", tuple([1] * 120)), reference, artifact)]
    assert summarize(scores).n_ties == 0
    eased = summarize(scores, tie=1e-4)
    assert eased.n_ties == 1 and eased.same_top1 == pytest.approx(119 / 120)


def test_agreement_counts_sets_in_any_order() -> None:
    first = {2: np.array([[1, 2], [3, 4]])}
    assert agreement(first, {2: [[2, 1], [4, 3]]}) == {2: 1.0}
    assert agreement(first, {2: [[2, 1], [4, 5]]}) == {2: 0.75}
    with pytest.raises(ValueError, match="layers"):
        agreement(first, {1: [[1, 2], [3, 4]]})
    with pytest.raises(ValueError, match="shape"):
        agreement(first, {2: [[1, 2]]})


def test_the_layer_that_agrees_least_is_named(own: Own) -> None:
    floor = distance(own, Arithmetic.INT8)
    seen = {layer: chosen.copy() for layer, chosen in own.routed.items()}
    assert all(gate.passed for gate in judge_experts(compare_experts(seen, own.routed, own.routed), floor))
    seen[2][:, 0] = (seen[2][:, 0] + 1) % 8
    layers = compare_experts(seen, own.routed, own.routed)
    (gate,) = judge_experts(layers, floor)
    assert not gate.passed and gate.where == "layer 2"
    assert judge_experts(compare_experts(None, own.routed, own.routed), floor) == []
    assert LayerExperts(1, 1.0, 1.0, own.routed[1].size) in layers
