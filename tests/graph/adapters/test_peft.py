"""Merged weights are those of PEFT's own `merge_and_unload`, for every kind of LoRA that PEFT writes for these models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfm_convert.graph.adapters.adapter import adapting
from lfm_convert.graph.adapters.merging import merge_adapters
from lfm_convert.graph.adapters.modules import Modules
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.tensor import n_rows_of
from support.peft_adapters import make_adapter, merged

pytestmark = pytest.mark.peers

SETTINGS: Mapping[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "w1", "in_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "w2", "conv.out_proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "w1"],
        "rank_pattern": {"v_proj": 7, r"layers\.0\.feed_forward\.w1": 2},
        "alpha_pattern": {"q_proj": 11, "^model.layers.3.self_attn.v_proj": 1},
    },
    "norms saved": {"target_modules": ["q_proj"], "modules_to_save": ["q_layernorm", "operator_norm", "conv.conv"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 1, 40]},
}
UNTIED: Mapping[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding, dora": {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
    "embedding saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
EXPERTS: Mapping[str, dict[str, Any]] = {
    "both": {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "one": {"target_modules": [], "target_parameters": ["experts.down_proj"], "rank_pattern": {"experts.down_proj": 2}},
    "router": {"target_modules": [], "target_parameters": ["gate.weight"]},
}


def read(graph: WeightGraph, name: str) -> np.ndarray:
    """A tensor of the merged model by the name that transformers gives it."""
    seats = Modules(graph).seats[name]
    shape = seats[0][1].shape
    found = np.empty((n_rows_of(shape), shape[-1]), np.float32)
    for (role, layer), seat in seats:
        weights = graph.top if layer is None else graph.layers[layer].weights
        view = weights[role].view
        for row, stored, n in seat.runs(0, view.n_rows):
            found[stored : stored + n] = view.rows(row, row + n)
    return found.reshape(shape)


def assert_equal(graph: WeightGraph, expected: Mapping[str, torch.Tensor]) -> None:
    """Within one unit in the last place of bfloat16; where terms cancel, within float32's rounding of the terms."""
    for name, tensor in expected.items():
        if name == "lm_head.weight" and graph.is_tied:
            continue
        wanted, own = tensor.detach().float().numpy(), read(graph, name)
        np.testing.assert_array_equal(own, torch.from_numpy(own).to(tensor.dtype).float().numpy())
        difference = np.abs(own - wanted.reshape(own.shape))
        unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 1e-30))) - 7).reshape(own.shape)
        assert (difference <= np.maximum(unit, 2e-6 * np.abs(wanted).max())).all(), name
        assert (difference > 0).mean() < 1e-3, name


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_dense_model(kind: str, tiny_dense: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_dense, tmp_path / "adapter", **SETTINGS[kind])
    graph = merge_adapters(open_graph(tiny_dense), adapting([folder]))
    assert graph.is_tied
    assert_equal(graph, merged(tiny_dense, [folder]))


@pytest.mark.parametrize("kind", UNTIED)
def test_an_adapter_of_the_table_or_the_head_parts_them(kind: str, tiny_dense: Path, tmp_path: Path) -> None:
    """As the trained model has them: PEFT merges so only where the head has a tensor of its own."""
    folder = make_adapter(tiny_dense, tmp_path / "adapter", **UNTIED[kind])
    graph = merge_adapters(open_graph(tiny_dense), adapting([folder]))
    assert not graph.is_tied and not graph.config.tied
    assert_equal(graph, merged(tiny_dense, [folder], untied=True))


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_and_routers(kind: str, tiny_moe: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_moe, tmp_path / "adapter", **EXPERTS[kind])
    graph = merge_adapters(open_graph(tiny_moe), adapting([folder]))
    assert_equal(graph, merged(tiny_moe, [folder]))
