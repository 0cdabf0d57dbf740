"""What a config of a known family asks for that no block says: named, with the file that would have to say it."""

from __future__ import annotations

from typing import Any

import pytest
from lfm_convert.graph.source.config_file import parse_config
from support.family_configs import PUBLISHED, small
from support.refusals import refused

CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "rope type": ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "spiral"}}, ("rope type 'spiral' is not known", "graph/rotary.py")),
    "dynamic rope": ("Llama-3.2-1B", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("rope type 'dynamic'", "graph/rotary.py")),
    "rope without numbers": ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ("lacks low_freq_factor", "lacks high_freq_factor")),
    "a rope for each kind": (
        "Qwen3-0.6B",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        ("rope_parameters holds full_attention: expected one rope",),
    ),
    "empty band": (
        "Llama-3.2-1B",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        ("low_freq_factor 4.0 and high_freq_factor 4.0",),
    ),
    "base of one": ("Qwen3-0.6B", {"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ("has rope_theta 1.0",)),
    "factors of another length": (
        "Phi-4-mini",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 6}},
        ("has another short_factor than 6 numbers",),
    ),
    "odd part of a head": ("Phi-4-mini", {"partial_rotary_factor": 0.7, "rope_scaling": None}, ("partial_rotary_factor 0.7 of a head of 16 is 11",)),
    "activation": ("Qwen3-0.6B", {"hidden_act": "relu2"}, ("hidden_act is 'relu2'", "graph/blocks.py")),
    "biased feed-forward": ("Llama-3.2-1B", {"mlp_bias": True}, ("mlp_bias is True", "graph/blocks.py")),
    "capped scores": ("gemma-3-270m", {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping is 50.0", "graph/blocks.py")),
    "layer kind": ("gemma-3-270m", {"layer_types": ["chunked_attention"] * 4}, ("layer_types holds 'chunked_attention'", "graph/blocks.py")),
    "Mamba layers": ("Granite-4.0-1B", {"layer_types": ["mamba", "attention", "mamba", "mamba"]}, ("Mamba-2 layers", "graph/blocks.py")),
    "shared expert": ("Granite-4.0-1B", {"num_local_experts": 4}, ("shared expert", "graph/blocks.py")),
    "pattern of another length": ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, ("no_rope_layers has 2 entries but num_hidden_layers is 4",)),
    "too many chosen": ("Qwen3-30B-A3B", {"num_experts_per_tok": 9}, ("num_experts_per_tok 9 exceeds num_experts 8",)),
    "missing size": ("Qwen3-0.6B", {"intermediate_size": None}, ("intermediate_size is missing",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_no_block_says_is_named(case: str) -> None:
    name, fields, parts = CASES[case]
    with refused("config.json", *parts):
        parse_config(small(name, **fields))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str) -> None:
    raw = PUBLISHED[name]
    config = parse_config(raw)
    assert (config.n_layers, config.hidden_size) == (raw["num_hidden_layers"], raw["hidden_size"])
    again = parse_config({**raw, **config.family.hub_fields(config)})
    assert (again.layers, again.embedding_scale, again.logit_scale) == (
        config.layers,
        config.embedding_scale,
        config.logit_scale,
    )
