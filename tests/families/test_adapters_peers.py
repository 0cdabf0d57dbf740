"""Adapters of other families merged: equal to the checkpoint that PEFT's `merge_and_unload` gives and transformers saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.adapters.adapter import adapting
from lfm_convert.graph.adapters.merging import merge_adapters
from lfm_convert.graph.opening import open_graph
from support.family_configs import small
from support.family_models import make_model
from support.peft_adapters import make_adapter, merged_model

pytestmark = pytest.mark.peers

LINEAR = {"target_modules": "all-linear"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3-0.6B", LINEAR),
    "llama, dora": ("Llama-3.2-1B", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "smollm3": ("SmolLM3-3B", LINEAR),
    "granite": ("Granite-3.3-2B", LINEAR),
    "granite 4": ("Granite-4.0-1B", LINEAR),
    "gemma": ("gemma-3-270m", LINEAR),
    "gemma, norms saved": ("gemma-3-270m", {"target_modules": ["q_proj"], "modules_to_save": ["q_norm", "input_layernorm"]}),
    "phi": ("Phi-4-mini", LINEAR),
    "phi, dora": ("Phi-4-mini", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_dora": True}),
    "qwen3-moe": ("Qwen3-30B-A3B", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "granite-moe": ("Granite-3.1-1B-A400M", {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merged_as_peft_does(case: str, tmp_path: Path) -> None:
    name, settings = CASES[case]
    base = make_model(tmp_path / "base", small(name, torch_dtype="bfloat16"))
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    merged_model(base, [adapter]).save_pretrained(tmp_path / "merged")
    graph = open_graph(base)
    found = merge_adapters(graph, adapting([adapter]))
    moved = 0
    for ours, theirs, plain in zip(
        found.weights(), open_graph(tmp_path / "merged").weights(), graph.weights(), strict=True
    ):
        assert ours.address == theirs.address
        values, expected = ours.view.read(), theirs.view.read()
        # one unit in the last place of bfloat16; where terms cancel, float32's rounding of the terms
        unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(expected), 1e-30))) - 7)
        allowed = np.maximum(unit, 2e-6 * np.abs(expected).max())
        assert (np.abs(values - expected) <= allowed).all(), ours.address
        moved += not np.array_equal(values, plain.view.read())
    assert moved >= graph.config.n_layers
