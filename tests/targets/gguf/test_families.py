"""What llama.cpp's graphs of other families cannot say, what their files say, and files of theirs as a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.gguf_file.header import ValueType
from lfm_convert.quantize.policies.gguf import gguf_policy
from lfm_convert.targets.gguf.metadata import metadata
from lfm_convert.targets.gguf.stored import stored_tensors
from lfm_convert.targets.gguf.target import TARGET
from support.family_configs import PUBLISHED
from support.refusals import refused

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


def declared(folder: Path, name: str, **fields: Any) -> WeightGraph:
    (folder / "config.json").write_text(json.dumps({**PUBLISHED[name], **fields}))
    return open_graph(folder, weights=False)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("Qwen3-0.6B", {"attention_bias": True}, "biases of attention"),
        ("Qwen3-0.6B", {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 27}, "sliding-window"),
        ("Qwen3-0.6B", {"rope_scaling": {**_YARN, "truncate": False}}, "at other than the default frequencies"),
        ("Qwen3-0.6B", {"hidden_act": "gelu_pytorch_tanh"}, "the activation gelu_pytorch_tanh, where it has silu"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [0]}, "dense feed-forward (layer 0)"),
        ("Qwen3-30B-A3B", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("SmolLM3-3B", {"no_rope_layers": [1] * 36}, "attention with rotary positions, where it has none (layers 3"),
        ("SmolLM3-3B", {"no_rope_layers": [1, 0] * 18}, "attention without rotary positions (layers 1, 5"),
        ("gemma-3-270m", {"query_pre_attn_scalar": 168}, "scores are multiplied with 0.0771517, where it does with"),
        ("gemma-3-270m", {"hidden_activation": "silu"}, "the activation silu, where it has gelu_pytorch_tanh"),
        ("Phi-4-mini", {"sliding_window": 2047}, "sliding-window attention"),
    ],
)
def test_what_an_architecture_has_not_is_refused(name: str, fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with refused("llama.cpp has no representation of", words, error=UsageError):
        TARGET.plan(declared(tmp_path, name, **fields), "F16")


def said(graph: WeightGraph) -> dict[str, Any]:
    pairs = metadata(graph, stored_tensors(graph), "F16", quantized=False)
    assert all(pair.type is not ValueType.ARRAY for pair in pairs if pair.key.endswith("head_count_kv"))
    return {pair.key.partition(".")[2]: pair.value for pair in pairs}


def test_scales_of_granite(tmp_path: Path) -> None:
    found = said(declared(tmp_path, "Granite-3.3-2B"))
    wanted = {"attention.scale": 0.015625, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
    assert {key: found[key] for key in wanted} == wanted
    assert "rope.scaling.finetuned" not in found


def test_ropes_as_keys_and_as_tensors(tmp_path: Path) -> None:
    yarn = said(declared(tmp_path, "Qwen3-0.6B", rope_scaling=_YARN))
    assert (yarn["rope.scaling.type"], yarn["rope.scaling.factor"]) == ("yarn", 4.0)
    assert yarn["rope.scaling.original_context_length"] == 8192
    scaled = said(declared(tmp_path, "Qwen3-0.6B", rope_scaling={**_YARN, "attention_factor": 0.5}))
    assert scaled["rope.scaling.attn_factor"] == pytest.approx(0.5 / (0.1 * np.log(4) + 1))
    tensors = {each.name: each.view for each in stored_tensors(declared(tmp_path, "Llama-3.2-1B"))}
    factors = tensors["rope_freqs.weight"].read()
    assert factors.shape == (32,) and factors[0] == 1 and factors[-1] == 32
    phi = {each.name: each.view for each in stored_tensors(declared(tmp_path, "Phi-4-mini"))}
    longer = PUBLISHED["Phi-4-mini"]["rope_scaling"]["long_factor"]
    assert np.array_equal(phi["rope_factors_long.weight"].read(), np.array(longer, np.float32))


def test_windows_are_listed_only_where_they_are_not_the_usual(tmp_path: Path) -> None:
    assert "attention.sliding_window_pattern" not in said(declared(tmp_path, "gemma-3-270m"))
    other = said(declared(tmp_path, "gemma-3-270m", sliding_window_pattern=3))
    assert other["attention.sliding_window_pattern"] == [(i + 1) % 3 != 0 for i in range(18)]


def test_a_file_without_a_tokenizer_says_how_many_tokens_there_are(tmp_path: Path) -> None:
    assert said(declared(tmp_path, "Qwen3-0.6B"))["vocab_size"] == 151_936


def test_what_is_kept_together_has_the_type_of_its_last(tmp_path: Path) -> None:
    plan = TARGET.plan(declared(tmp_path, "Phi-4-mini"), "Q4_K_M")
    fused = {tensor.name: tensor for tensor in plan.tensors if "attn_qkv" in tensor.name}
    assert {name for name, tensor in fused.items() if tensor.encoding.name == "Q6_K"} >= {"blk.0.attn_qkv.weight"}
    assert fused["blk.0.attn_qkv.weight"].shape == (5120, 3072)
    assert fused["blk.0.attn_qkv.weight"].addresses == tuple(
        (role, 0) for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
    )


def test_values_of_a_llama_of_eighty_layers_are_wider(tmp_path: Path) -> None:
    """llama-quantize takes it for the 70B, if its heads share keys."""
    for n_layers, wanted in ((80, "Q5_K"), (79, "Q4_K")):
        graph = declared(tmp_path, "Llama-3.2-1B", num_hidden_layers=n_layers)
        policy = gguf_policy("Q4_K_M", graph.config)
        weight = next(w for w in graph.weights() if w.address == (Role.ATTN_V, 19))
        assert policy.choose(weight).encoding.name == wanted
