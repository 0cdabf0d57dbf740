"""What a folder of each family says to clients: inputs and outputs of its graph, config.json, genai_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from lfm_convert.graph.blocks import Attention
from lfm_convert.graph.config import ModelConfig
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.config_file import parse_config, with_own_names
from lfm_convert.targets.target import get_target
from support.family_configs import PUBLISHED, small

# Published model -> its type in config.json, and in genai_config.json.
TYPES = {
    "Qwen3-0.6B": ("qwen3", "qwen3"),
    "Llama-3.2-1B": ("llama", "llama"),
    "SmolLM3-3B": ("smollm3", "smollm3"),
    "Granite-3.3-2B": ("granite", "granite"),
    "Granite-4.0-1B": ("granitemoehybrid", "granitemoehybrid"),
    "gemma-3-270m": ("gemma3_text", "gemma3_text"),
    "gemma-3-4b": ("gemma3_text", "gemma3_text"),
    "Phi-4-mini": ("phi3", "phi3"),
    "Qwen3-30B-A3B": ("qwen3_moe", "qwen3"),  # which genai does not have
    "Granite-3.1-1B-A400M": ("granite", "granite"),  # of which no client knows the mixture
}


def graph_of(folder: Path, name: str, **fields: Any) -> WeightGraph:
    (folder / "config.json").write_text(json.dumps(small(name, **fields)))
    return open_graph(folder, weights=False)


def attention_of(config: ModelConfig) -> Attention:
    found = config.first(Attention)
    assert found is not None
    return found


def files_of(graph: WeightGraph, caches: str = "whole") -> dict[str, Any]:
    target = get_target("onnx").with_options({"onnx_caches": caches})
    files = target.shared_files(graph, [target.plan(graph, "q4")])
    return {name: json.loads(data) for name, data in files.items() if name.endswith(".json")}


def test_every_family_is_here() -> None:
    assert {small(name)["model_type"] for name in TYPES} == {config["model_type"] for config in PUBLISHED.values()}


@pytest.mark.parametrize("name", TYPES)
def test_inputs_and_outputs(name: str, tmp_path: Path) -> None:
    """Keys and values of each layer, and nothing of a convolution."""
    graph = graph_of(tmp_path, name)
    target = get_target("onnx").with_options({"onnx_caches": "whole"})
    proto = onnx.load_model_from_string(target.plan(graph, "q4f16").details.graph).graph
    caches = [(i, part) for i in range(4) for part in ("key", "value")]
    assert [i.name for i in proto.input] == [
        "input_ids", "attention_mask", "num_logits_to_keep", *(f"past_key_values.{i}.{part}" for i, part in caches),
    ]  # fmt: skip
    assert [o.name for o in proto.output] == ["logits", *(f"present.{i}.{part}" for i, part in caches)]
    attention = attention_of(graph.config)
    shape = [d.dim_param or d.dim_value for d in proto.input[3].type.tensor_type.shape.dim]
    assert shape == ["batch_size", attention.n_kv_heads, "past_sequence_length", attention.head_dim]


@pytest.mark.parametrize("name", TYPES)
def test_genai_config(name: str, tmp_path: Path) -> None:
    graph = graph_of(tmp_path, name)
    model = files_of(graph)["genai_config.json"]["model"]
    decoder, attention = model["decoder"], attention_of(graph.config)
    assert model["type"] == TYPES[name][1]
    assert (decoder["num_hidden_layers"], decoder["hidden_size"], decoder["head_size"]) == (4, 64, attention.head_dim)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (4, 2)
    assert set(decoder["inputs"]) == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    assert not {"conv_cache_size", "layer_types"} & set(decoder)


@pytest.mark.parametrize("name", TYPES)
def test_config_says_what_the_checkpoint_says(name: str, tmp_path: Path) -> None:
    """And names the sizes of caches, which Transformers.js asks for up to 4.1."""
    graph = graph_of(tmp_path, name)
    written = files_of(graph)["config.json"]
    assert written["model_type"] == TYPES[name][0]
    assert parse_config(with_own_names(written)) == graph.config
    assert (written["num_hidden_layers"], written["num_attention_heads"], written["num_key_value_heads"]) == (4, 4, 2)
    assert written["head_dim"] == attention_of(graph.config).head_dim
    assert "conv_L_cache" not in written


@pytest.mark.parametrize(("name", "has_windows"), [("gemma-3-270m", True), ("Qwen3-0.6B", False)])
def test_genai_needs_whole_caches(name: str, has_windows: bool, tmp_path: Path) -> None:
    assert ("genai_config.json" in files_of(graph_of(tmp_path, name), "window")) == (not has_windows)
