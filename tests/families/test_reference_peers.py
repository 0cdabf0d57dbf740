"""The forward pass against transformers in float32, of every family and of what its published models vary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from support.family_configs import PUBLISHED, small
from support.family_models import make_model
from support.transformers_peer import logits_of

pytestmark = pytest.mark.peers

MAX_DIFFERENCE = 1e-4
PROMPT = np.random.default_rng(5).integers(8, 600, 40).tolist()
LONG_PROMPT = np.random.default_rng(6).integers(8, 600, 100).tolist()

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in PUBLISHED},
    "qwen3 untied": ("Qwen3-0.6B", {"tie_word_embeddings": False}),
    "qwen3 biased": ("Qwen3-0.6B", {"attention_bias": True}),
    "qwen3 yarn": ("Qwen3-0.6B", {"rope_scaling": _YARN}),
    "qwen3 yarn, exact ends": ("Qwen3-0.6B", {"rope_scaling": {**_YARN, "truncate": False, "attention_factor": 0.7}}),
    "qwen3 windows": ("Qwen3-0.6B", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3-moe not normed": ("Qwen3-30B-A3B", {"norm_topk_prob": False}),
    "qwen3-moe dense layers": ("Qwen3-30B-A3B", {"mlp_only_layers": [1], "decoder_sparse_step": 2}),
    "llama default rope": ("Llama-3.2-1B", {"rope_scaling": None}),
    "llama linear rope": ("Llama-3.2-1B", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama biased": ("Llama-3.2-1B", {"attention_bias": True}),
    "llama untied": ("Llama-3.2-1B", {"tie_word_embeddings": False}),
    "smollm3 other interval": ("SmolLM3-3B", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "granite untied": ("Granite-3.3-2B", {"tie_word_embeddings": False, "residual_multiplier": 1.5}),
    "granite 4 without rope": ("Granite-4.0-1B", {"position_embedding_type": "nope"}),
    "gemma linear rope": ("gemma-3-270m", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "phi default rope": ("Phi-4-mini", {"rope_scaling": None}),
    "phi window": ("Phi-4-mini", {"sliding_window": 11}),
    "phi whole rope": (
        "Phi-4-mini",
        {
            "partial_rotary_factor": 1.0,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8},
        },
    ),
}


def ours(graph: WeightGraph, prompt: Sequence[int], chunks: Sequence[int] = ()) -> np.ndarray:
    """Logits of the prompt, in pieces that end at these positions."""
    forward, state, rows = Forward(graph), State(1), []
    for low, high in zip((0, *chunks), (*chunks, len(prompt)), strict=True):
        rows += forward.extend(state, [prompt[low:high]])
    return np.concatenate(rows)


@pytest.mark.parametrize("as_saved", [False, True], ids=["as published", "as saved"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant: str, as_saved: bool, tmp_path: Path, record_property: Any) -> None:
    name, fields = VARIANTS[variant]
    folder = make_model(tmp_path, small(name, **fields), as_saved=as_saved)
    graph = open_graph(folder)
    expected = logits_of(folder, PROMPT)
    for chunks in ((), (13, 27)):
        difference = float(np.abs(ours(graph, PROMPT, chunks) - expected).max())
        record_property(f"in {len(chunks) + 1} pieces", difference)
        assert difference <= MAX_DIFFERENCE
    assert np.abs(expected).max() > 0.3  # so that the limit says something


@pytest.mark.parametrize("name", ["Phi-4-mini", "Llama-3.2-1B", "gemma-3-270m"])
def test_texts_longer_than_the_trained_context(name: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, small(name))
    difference = np.abs(ours(open_graph(folder), LONG_PROMPT) - logits_of(folder, LONG_PROMPT)).max()
    assert difference <= MAX_DIFFERENCE
