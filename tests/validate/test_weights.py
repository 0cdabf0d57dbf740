"""Stored weights against the checkpoint, held to what the encoder of their own format leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ScaledTensor
from lfm_convert.quantize.encoding import encoding_names, get_encoding
from lfm_convert.validate.weights import TensorError, as_format_makes_it, judge_format, judge_weights, weight_errors
from support.planted import BUGS, StoredAs

WIDE = (Role.FFN_UP, 0)
ENCODINGS = [name for name in encoding_names() if get_encoding(name).refusal(64) is None]


def _with(graph: WeightGraph, encoding: str, change: Callable[[np.ndarray], np.ndarray]) -> WeightGraph:
    values = graph.layers[0][Role.FFN_UP].read()
    return graph.with_weights({WIDE: StoredAs(values, encoding, change)})


def _errors(graph: WeightGraph, stored: WeightGraph) -> tuple[TensorError, ...]:
    return weight_errors(graph, {(w.role, w.layer): w.view for w in stored.weights()})


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_an_encoder_stores_is_sound_in_every_format(dense_graph: WeightGraph, encoding: str) -> None:
    errors = _errors(dense_graph, _with(dense_graph, encoding, lambda decoded: decoded))
    assert judge_weights(errors).passed and judge_format(errors).passed, (judge_weights(errors), judge_format(errors))


def _one_row(decoded: np.ndarray) -> np.ndarray:
    decoded[5] = decoded[6]
    return decoded


def _groups_off_by_one(decoded: np.ndarray) -> np.ndarray:
    return np.roll(decoded, 32, axis=1)


@pytest.mark.parametrize("encoding", ["F32", "F16", "Q8_0", "Q4_0", "int4_block32_f32", "affine4_g64_bf16"])
@pytest.mark.parametrize("change", [_one_row, _groups_off_by_one], ids=["one row", "groups off by one"])
def test_rows_that_are_not_the_checkpoints_are_named(
    dense_graph: WeightGraph, encoding: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    gate = judge_weights(_errors(dense_graph, _with(dense_graph, encoding, change)))
    assert not gate.passed and gate.where.startswith("layer 0 ffn_up, row ")
    assert change is not _one_row or gate.where.endswith(" 5")


def test_a_little_noise_is_worse_than_the_format_and_not_another_checkpoint(dense_graph: WeightGraph) -> None:
    rng = np.random.default_rng(0)
    noisy = _with(
        dense_graph, "Q4_0", lambda decoded: decoded * (1 + 0.1 * rng.standard_normal(decoded.shape, np.float32))
    )
    errors = _errors(dense_graph, noisy)
    assert judge_weights(errors).passed and not judge_format(errors).passed
    assert judge_format(errors).where == "layer 0 ffn_up"


def test_what_is_stored_whole_must_be_whole(dense_graph: WeightGraph) -> None:
    """A thousandth of noise on a norm is another checkpoint's, whatever the quant."""
    address = (Role.FINAL_NORM, None)
    gain = dense_graph.top[Role.FINAL_NORM].view.read()
    other = dense_graph.with_weights({address: StoredAs(gain, "F32", lambda decoded: decoded * np.float32(1.001))})
    gate = judge_weights(_errors(dense_graph, other))
    assert not gate.passed and "final_norm" in gate.where


def test_a_quant_is_held_to_its_own_encoder(dense_graph: WeightGraph) -> None:
    """A tensor in fewer bits than the quant gives it is sound for what it is, and worse than the quant."""
    stored = _with(dense_graph, "Q4_0", lambda decoded: decoded)
    decoded = {(w.role, w.layer): w.view for w in stored.weights()}
    planned = {WIDE: get_encoding("Q8_0")}
    errors = weight_errors(dense_graph, decoded, planned)
    assert judge_weights(errors).passed and judge_format(errors).value > 5
    made = as_format_makes_it(dense_graph, decoded, planned)
    found = weight_errors(made, {(w.role, w.layer): w.view for w in dense_graph.weights()})
    assert [error.where for error in found if error.rel_rms] == ["layer 0 ffn_up"]


def test_one_expert_is_named(moe_graph: WeightGraph) -> None:
    gate = judge_weights(_errors(moe_graph, BUGS["experts swapped"].store(moe_graph)))
    assert not gate.passed and gate.where.startswith("layer 2 expert_down, expert ")


@pytest.mark.parametrize("encoding", ["BF16", "F16", "Q8_0", "Q4_0"])
def test_what_is_stored_times_a_factor_is_rounded_so(dense_graph: WeightGraph, encoding: str) -> None:
    """A GGUF holds experts times routed_scaling_factor: rounding to bfloat16 is then no fault."""
    values = dense_graph.layers[0][Role.FFN_UP].read()
    scaled = ScaledTensor(StoredAs(values * np.float32(2.5), encoding), 1 / 2.5)
    errors = _errors(dense_graph, dense_graph.with_weights({WIDE: scaled}))
    assert judge_weights(errors).passed and judge_format(errors).passed
