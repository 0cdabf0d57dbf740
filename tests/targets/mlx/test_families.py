"""What mlx-lm's classes of the families cannot say is refused by block; what it has otherwise is written as it reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.families.family import MlxNames
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.mlx.package import config_fields
from lfm_convert.targets.target import get_target
from support.fitting_models import fitting
from support.refusals import refused

TARGET = get_target("mlx")
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows": (
        "Qwen3-0.6B",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
        "sliding-window",
    ),
    "biases": ("Qwen3-0.6B", {"attention_bias": True}, "biased attention"),
    "biases of a gemma": ("gemma-3-270m", {"attention_bias": True}, "biased attention"),
    "heads": ("Granite-3.3-2B", {"head_dim": 32}, "4 heads of 32 with hidden_size 64"),
    "a scaled rope": ("Qwen3-30B-A3B", {"rope_scaling": _YARN}, "rotary positions of type 'yarn'"),
    "another scaled rope": (
        "Granite-4.0-1B",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "type 'linear'",
    ),
    "a rope of its own factor": ("Qwen3-0.6B", {"rope_scaling": {**_YARN, "attention_factor": 0.7}}, "type 'yarn'"),
    "ends of a ramp": ("Qwen3-0.6B", {"rope_scaling": {**_YARN, "truncate": False}}, "type 'yarn'"),
    "part of each head": ("Llama-3.2-1B", {"partial_rotary_factor": 0.5}, "rotation of the first numbers"),
    "a window of phi": ("Phi-4-mini", {"sliding_window": 11}, "sliding-window"),
    "other turns": (
        "gemma-3-270m",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]},
        "sliding-window attention in such layers",
    ),
}


def planned(folder: Path, name: str, fields: dict[str, Any]) -> Any:
    (folder / "config.json").write_text(json.dumps(fitting(name, **fields)))
    graph = open_graph(folder, weights=False)
    return graph, TARGET.plan(graph, "8bit")


@pytest.mark.parametrize("case", REFUSED)
def test_blocks_are_refused_by_name(case: str, tmp_path: Path) -> None:
    name, fields, words = REFUSED[case]
    with refused(words, "choose another target", error=UsageError):
        planned(tmp_path, name, fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Qwen3-0.6B", {"rope_scaling": _YARN}),
        ("Qwen3-0.6B", {"tie_word_embeddings": False}),
        ("Llama-3.2-1B", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("Llama-3.2-1B", {"attention_bias": True}),
        ("SmolLM3-3B", {"use_sliding_window": True, "sliding_window": 9}),
        ("Granite-4.0-1B", {"position_embedding_type": "nope"}),
        ("gemma-3-270m", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("Phi-4-mini", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ],
)
def test_what_they_can_is_planned(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    assert planned(tmp_path, name, fields)[1].tensors


def test_a_rope_with_two_tables_is_stored_by_the_first(tmp_path: Path) -> None:
    graph, plan = planned(tmp_path, "Phi-4-mini", {})
    scaling = config_fields(graph.config)["rope_scaling"]
    assert scaling["long_factor"] == scaling["short_factor"] == fitting("Phi-4-mini")["rope_scaling"]["short_factor"]
    (note,) = plan.notes
    assert "the context is 4096, not 8192" in note


@pytest.mark.parametrize(("hidden", "rounded"), [(640, 25.25), (1152, 34.0), (2560, 50.5), (1024, 32.0)])
def test_scale_of_embeddings_as_mlx_lm_has_it(hidden: int, rounded: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fitting("gemma-3-270m", hidden_size=hidden)))
    graph = open_graph(tmp_path, weights=False)
    assert graph.config.embedding_scale == hidden**0.5
    assert TARGET.as_run(graph).config.embedding_scale == rounded
    assert get_target("compressed-tensors").as_run(graph) is graph


def test_others_run_their_scales_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fitting("Granite-3.3-2B", embedding_multiplier=12.1)))
    graph = open_graph(tmp_path, weights=False)
    assert TARGET.as_run(graph) is graph


def test_wide_modules(tmp_path: Path) -> None:
    """Granite's outputs have eight bits whatever the quant is, unless it says the head's."""
    _, plan = planned(tmp_path, "Granite-3.3-2B", {"tie_word_embeddings": False})
    graph = open_graph(tmp_path, weights=False)
    for quant, head in (("4bit", 8), ("4bit-e6", 6)):
        found = {t.name: t.encoding for t in TARGET.plan(graph, quant).tensors}
        bits = {name: getattr(each, "bits", None) for name, each in found.items()}
        assert bits["model.layers.0.self_attn.o_proj.weight"] == bits["model.layers.0.mlp.down_proj.weight"] == 8
        assert bits["model.layers.0.self_attn.q_proj.weight"] == 4
        assert bits["lm_head.weight"] == head
    assert MlxNames().can == frozenset()
    assert np.isfinite(plan.tensor_bytes)
