"""The forward pass against transformers in float32, over every variant of the family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from support.checkpoints import dense_25_config, dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT
from support.safetensors_files import edit_tensors
from support.transformers_peer import logits_of

pytestmark = pytest.mark.peers

MAX_DIFFERENCE = 1e-4

VARIANTS: dict[str, tuple[Callable[..., dict], dict[str, Any], dict[str, Any]]] = {
    "dense": (dense_config, {}, {}),
    "dense-2.5-spelling": (dense_25_config, {}, {}),
    "dense-float32": (dense_25_config, {}, {"dtype": "float32"}),
    "dense-float16": (dense_config, {}, {"dtype": "float16"}),
    "dense-untied": (dense_config, {"tie_embedding": False}, {}),
    "dense-adjusted-ffn": (dense_config, {"block_ff_dim": 1000, "block_multiple_of": 32}, {}),
    "dense-multiplied-ffn": (dense_config, {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 8}, {}),
    "dense-conv-bias": (dense_config, {"conv_bias": True}, {}),
    "dense-conv-width-2": (dense_config, {"conv_L_cache": 2}, {}),
    "dense-conv-width-4": (dense_config, {"conv_L_cache": 4}, {}),
    "dense-gqa-1": (dense_config, {"num_key_value_heads": 4}, {}),
    "dense-gqa-4": (dense_config, {"num_key_value_heads": 1}, {}),
    "dense-head-dim": (dense_25_config, {"head_dim": 48}, {}),
    "dense-theta": (dense_25_config, {"rope_parameters": {"rope_theta": 1e7, "rope_type": "default"}}, {}),
    "dense-norm-eps": (dense_25_config, {"norm_eps": 0.5}, {}),
    "moe": (moe_config, {}, {}),
    "moe-shards": (moe_config, {}, {"shards": 3}),
    "moe-fused": (moe_config, {}, {"fused_experts": True}),
    "moe-untied": (moe_config, {"tie_embedding": False}, {}),
    "moe-scaled": (moe_config, {"routed_scaling_factor": 2.5}, {}),
    "moe-not-normed": (moe_config, {"norm_topk_prob": False}, {}),
    "moe-no-expert-bias": (moe_config, {"use_expert_bias": False}, {}),
    "moe-top-1": (moe_config, {"num_experts_per_tok": 1}, {}),
    "moe-all-experts": (moe_config, {"num_dense_layers": 0}, {}),
    "moe-conv-bias": (moe_config, {"conv_bias": True}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant: str, tmp_path: Path, record_property: Callable) -> None:
    config, overrides, options = VARIANTS[variant]
    folder = make_checkpoint(tmp_path, config(**overrides), **options)
    difference = _difference(folder)
    record_property("max_difference", difference)
    print(f"{variant}: max |Δlogit| {difference:.1e}")
    assert difference <= MAX_DIFFERENCE


@pytest.mark.parametrize("layer", [0, 2])
def test_swapping_gate_and_up_breaks_the_agreement(layer: int, tmp_path: Path) -> None:
    ours = _logits(make_checkpoint(tmp_path / "ours"))
    swapped = make_checkpoint(tmp_path / "swapped")
    gate, up = (f"model.layers.{layer}.feed_forward.{name}.weight" for name in ("w1", "w3"))
    edit_tensors(swapped / "model.safetensors", lambda t: t.update({gate: t[up], up: t[gate]}))
    assert np.abs(ours - logits_of(swapped, PROMPT)).max() > 100 * MAX_DIFFERENCE


def _logits(folder: Path) -> np.ndarray:
    logits, _ = Forward(open_graph(folder)).prefill([PROMPT])
    return logits[0]


def _difference(folder: Path) -> float:
    return float(np.abs(_logits(folder) - logits_of(folder, PROMPT)).max())
