"""Tensors as checkpoints keep them: fused, less one, and back again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.families.places import GainLessOne
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor, OffsetTensor
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.targets.encoded import as_stored
from lfm_convert.targets.kept import graph_weights, kept_tensors, kept_weights
from lfm_convert.targets.target import get_target
from support.drawn_graphs import declared, drawn
from support.family_configs import PUBLISHED
from support.fitting_models import fitting

QUANTS = {"mlx": ("8bit", "4bit-e6", "mxfp4", "bf16"), "compressed-tensors": ("W4A16", "W8A8", "FP8", "NVFP4A16")}
QKV, GATE_UP = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V), (Role.FFN_GATE, Role.FFN_UP)


@pytest.mark.parametrize("name", ["Phi-4-mini", "Granite-4.0-1B", "gemma-3-270m", "Llama-3.2-1B"])
def test_what_is_kept_is_the_model_again(name: str, tmp_path: Path) -> None:
    graph = drawn(tmp_path, name)
    kept = kept_tensors(graph.config)
    stored = {(w.role, w.layer): w for w in kept_weights(graph)}
    assert [(each.role, each.layer) for each in kept] == list(stored)
    for each in kept:
        assert each.shape == stored[each.role, each.layer].shape
        assert each.roles[1:] == stored[each.role, each.layer].others
    found = graph_weights(graph.config, {each: stored[each.role, each.layer].view for each in kept})
    for weight in graph.weights():
        np.testing.assert_allclose(found[weight.address].read(), weight.view.read(), rtol=0, atol=3e-7)


def test_what_is_fused(tmp_path: Path) -> None:
    phi = drawn(tmp_path, "Phi-4-mini")
    fused = {(w.role, *w.others): w for w in kept_weights(phi) if w.layer == 1}
    assert {QKV, GATE_UP} <= fused.keys()
    assert fused[QKV].view.name == "model.layers.1.self_attn.qkv_proj.weight"
    parts = [phi.layers[1][role].read() for role in QKV]
    np.testing.assert_array_equal(fused[QKV].view.read(), np.concatenate(parts))
    assert all(not w.others for w in kept_weights(phi, apart=set(Role)))


@pytest.mark.parametrize("encoding", ["affine4_g32_bf16", "ct_int4_g32_bf16", "ct_fp8_bf16"])
def test_a_fused_matrix_has_the_codes_of_its_parts(encoding: str) -> None:
    """Which is why reading its parts back is no loss: rows are encoded one by one."""
    rng, coder = np.random.default_rng(4), get_encoding(encoding)
    parts = [rng.standard_normal((n, 64)).astype(np.float32) for n in (6, 2, 2)]
    whole, apart = coder.encode(np.concatenate(parts)), [coder.encode(part) for part in parts]
    for found, *expected in zip(whole, *apart, strict=True):
        np.testing.assert_array_equal(found, np.concatenate(expected))


def test_gains_are_stored_less_one(tmp_path: Path) -> None:
    """To the bit, where the graph added the one itself; and what an encoder would store is rounded as they are."""
    graph = declared(tmp_path, fitting("gemma-3-270m"))
    own = ArrayTensor("gain", np.array([1e-3, -0.7, 3.3], np.float32))
    place = GainLessOne("gain")
    assert place.as_stored(place.as_weight(own)) is own
    (kept,) = (w for w in kept_weights(graph) if w.role is Role.FINAL_NORM)
    weight = graph.top[Role.FINAL_NORM]
    assert kept.view is not weight.view and kept.shape == weight.shape
    rounded = as_stored(OffsetTensor(own, 1), np.array([[1.001, 0.3, 4.3]], np.float32), get_encoding("BF16"))
    np.testing.assert_array_equal(rounded, np.float32([[1.00099945, 0.30078125, 4.296875]]))


@pytest.mark.parametrize("target", ["mlx", "compressed-tensors"])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_plans_of_published_models(name: str, target: str, tmp_path: Path) -> None:
    """Every weight is in one tensor of the plan."""
    graph = declared(tmp_path, PUBLISHED[name])
    is_one = target != "mlx" and name == "Granite-3.1-1B-A400M"
    if is_one:
        with pytest.raises(Exception, match="those of Granite-MoE are read from one tensor"):
            get_target(target).plan(graph, "W4A16")
        return
    for quant in QUANTS[target]:
        plan = get_target(target).plan(graph, quant)
        held = [address for tensor in plan.tensors for address in get_target(target).covers(tensor)]
        assert sorted(map(str, held)) == sorted(str(w.address) for w in graph.weights())


def test_a_plan_covers_the_parts_of_a_fused_matrix(tmp_path: Path) -> None:
    plan = get_target("mlx").plan(declared(tmp_path, fitting("Phi-4-mini")), "4bit-g32")
    (tensor,) = (t for t in plan.tensors if t.name == "model.layers.0.self_attn.qkv_proj.weight")
    assert tensor.addresses == tuple((role, 0) for role in QKV)
    assert replace(tensor, others=()).addresses == ((Role.ATTN_Q, 0),)
