"""Configs: every spelling means the same model, every contradiction is named with both values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.blocks import Attention, Dense, Mixture
from lfm_convert.graph.config import ModelConfig
from lfm_convert.graph.source.config_file import load_config, parse_config
from support.checkpoints import dense_25_config, dense_config, moe_config
from support.configs import PRESETS, preset
from support.refusals import refused

ROPE = {"rope_theta": 5e6, "rope_type": "default"}


def numbers(config: ModelConfig) -> dict[str, Any]:
    """What a config says of the model, and of its first attention and dense feed-forward."""
    attention, dense = config.first(Attention), config.first(Dense)
    assert attention is not None and attention.rope is not None
    return {
        **vars(config),
        "attention_layers": tuple(config.of_kind(Attention)),
        "rope_theta": attention.rope.theta,
        "head_dim": attention.head_dim,
        "q_size": attention.q_size,
        "ffn_size": dense and dense.size,
    }


def test_both_spellings_of_a_dense_model_are_one_config() -> None:
    old, new = parse_config(dense_config()), parse_config(dense_25_config())
    assert old == new
    assert numbers(old)["ffn_size"] == 256
    assert numbers(old)["attention_layers"] == (1, 3)
    assert old.tied


@pytest.mark.parametrize("alias", ["num_heads", "block_dim", "conv_dim", "conv_dim_out", "block_norm_eps"])
def test_an_alias_stands_in_for_its_owner(alias: str) -> None:
    owner = {"num_heads": "num_attention_heads", "block_norm_eps": "norm_eps"}.get(alias, "hidden_size")
    raw = {key: value for key, value in dense_config().items() if key != owner}
    assert alias in raw
    assert parse_config(raw) == parse_config(dense_config())


@pytest.mark.parametrize(
    ("overrides", "field", "expected"),
    [
        ({"rope_theta": None, "rope_parameters": ROPE}, "rope_theta", 5e6),
        ({"rope_theta": 5000000, "rope_parameters": ROPE}, "rope_theta", 5e6),
        ({"tie_embedding": None, "tie_word_embeddings": False}, "tied", False),
        ({"tie_embedding": None}, "tied", True),
        ({"tie_embedding": False, "tie_word_embeddings": False}, "tied", False),
        ({"full_attn_idxs": None, "layer_types": ["conv", "conv", "conv", "full_attention"]}, "attention_layers", (3,)),
        ({"layer_types": ["conv", "full_attention"] * 2}, "attention_layers", (1, 3)),
        ({"hidden_size": 128, "block_dim": 128.0}, "hidden_size", 128),
        ({"eos_token_id": [7, 2]}, "eos_token_ids", (7, 2)),
        ({"head_dim": 64}, "q_size", 256),
        ({"block_ff_dim": 6656}, "ffn_size", 4608),
        ({"block_ff_dim": 12288}, "ffn_size", 8192),
        ({"block_ff_dim": 10240}, "ffn_size", 6912),
        ({"block_ff_dim": 384, "block_auto_adjust_ff_dim": False}, "ffn_size", 384),
        ({"block_ff_dim": None, "intermediate_size": 6656}, "ffn_size", 4608),
        ({"block_ff_dim": 6656, "intermediate_size": 1000}, "ffn_size", 4608),
        ({"block_ff_dim": 1000, "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 8}, "ffn_size", 872),
    ],
)
def test_spellings(overrides: dict[str, Any], field: str, expected: object) -> None:
    assert numbers(parse_config(dense_config(**overrides)))[field] == expected


def test_a_null_multiplier_turns_rounding_off() -> None:
    raw = {**dense_config(block_ff_dim=1000), "block_ffn_dim_multiplier": None}
    assert numbers(parse_config(raw))["ffn_size"] == 666


def test_the_older_ffn_spelling_wins_with_a_note() -> None:
    (note,) = parse_config(dense_config(intermediate_size=999)).notes
    assert "block_ff_dim 384" in note and "999" in note


def test_moe_takes_the_dense_size_as_it_is() -> None:
    config = parse_config(moe_config(intermediate_size=6656, num_local_experts=8))
    assert numbers(config)["ffn_size"] == 6656
    assert config.mixture is not None
    assert (config.mixture.n_experts, config.mixture.top_k) == (8, 4)
    assert [isinstance(block, Mixture) for block in config.feed_forwards] == [False, True, True, True]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"model_type": "nemotron_h"}, ("model_type is 'nemotron_h', which has Mamba-2 layers", "graph/blocks.py")),
        ({"model_type": "gemma3n_text"}, ("which has AltUp", "graph/blocks.py")),
        ({"model_type": "gpt2"}, ("model_type is 'gpt2'", "lfm2, lfm2_moe, lfm3", "graph/families")),
        ({"model_type": None}, ("model_type is None",)),
        ({"model_type": ["lfm2"]}, ("model_type is ['lfm2']",)),
        ({"block_dim": 64}, ("hidden_size is 128", "block_dim is 64")),
        ({"conv_dim": 64}, ("hidden_size is 128", "conv_dim is 64")),
        ({"num_heads": 8}, ("num_attention_heads is 4", "num_heads is 8")),
        ({"block_norm_eps": 1e-6}, ("norm_eps is 1e-05", "block_norm_eps is 1e-06")),
        ({"tie_word_embeddings": False}, ("tie_word_embeddings is False", "tie_embedding is True")),
        ({"rope_parameters": ROPE}, ("rope_theta is 1000000.0", "rope_parameters.rope_theta is 5000000.0")),
        ({"rope_theta": None}, ("rope_theta is given neither",)),
        ({"rope_theta": "1e6"}, ("rope_theta is '1e6'", "expected a number")),
        ({"rope_theta": 0}, ("rope_theta is 0",)),
        ({"rope_parameters": [1]}, ("rope_parameters is [1]", "expected an object")),
        ({"rope_parameters": {**ROPE, "rope_type": "yarn"}}, ("rope type 'yarn'", "graph/rotary.py")),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ("rope type 'linear'",)),
        ({"layer_types": ["conv"] * 4}, ("full_attn_idxs [1, 3]", "whose attention is []")),
        ({"layer_types": ["conv", "full_attention"]}, ("layer_types has 2 entries", "num_hidden_layers is 4")),
        ({"layer_types": ["conv", "mamba", "conv", "conv"]}, ("layer_types holds 'mamba'", "graph/blocks.py")),
        ({"layer_types": ["gla", "mamba", "conv"]}, ("'gla', 'mamba': expected conv", "has 3 entries")),
        ({"layer_types": "conv"}, ("layer_types is 'conv'", "expected a list of str")),
        ({"layer_types": [["conv"]]}, ("expected a list of str",)),
        ({"full_attn_idxs": None}, ("neither layer_types nor full_attn_idxs",)),
        ({"full_attn_idxs": [1, 4]}, ("full_attn_idxs holds 4", "layers 0 to 3")),
        ({"full_attn_idxs": 3}, ("full_attn_idxs is 3", "expected a list of int")),
        ({"full_attn_idxs": [True]}, ("expected a list of int",)),
        ({"num_hidden_layers": 2**33}, ("num_hidden_layers is 8589934592", "at most 1024")),
        ({"num_key_value_heads": 3}, ("num_attention_heads 4", "num_key_value_heads 3")),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, ("hidden_size 128", "num_attention_heads 3")),
        ({"head_dim": 33}, ("head_dim is 33", "even")),
        ({"vocab_size": "512"}, ("vocab_size is '512'", "expected an integer")),
        ({"vocab_size": True}, ("vocab_size is True",)),
        ({"vocab_size": -1}, ("vocab_size is -1",)),
        ({"vocab_size": 2**60}, ("vocab_size is 1152921504606846976", "2^40")),
        ({"hidden_size": 128.5}, ("hidden_size is 128.5",)),
        ({"norm_eps": float("nan"), "block_norm_eps": None}, ("norm_eps is nan",)),
        ({"conv_L_cache": 1}, ("conv_L_cache is 1",)),
        ({"conv_bias": 1}, ("conv_bias is 1", "true or false")),
        ({"block_ff_dim": None}, ("intermediate_size is missing",)),
        ({"block_ff_dim": "wide"}, ("block_ff_dim is 'wide'",)),
        ({"eos_token_id": 512}, ("eos_token_id is 512", "vocab_size 512")),
        ({"pad_token_id": -1}, ("pad_token_id is -1",)),
        ({"bos_token_id": "1"}, ("bos_token_id is '1'",)),
    ],
)
def test_contradictions_name_fields_and_values(overrides: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused("config.json", *parts):
        parse_config(dense_config(**overrides))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"num_experts_per_tok": 9}, ("num_experts_per_tok 9", "num_experts 8")),
        ({"num_dense_layers": 5}, ("num_dense_layers 5", "4 layers")),
        ({"num_local_experts": 4}, ("num_experts is 8", "num_local_experts is 4")),
        ({"num_experts": None}, ("num_experts is missing",)),
        ({"intermediate_size": None, "block_ff_dim": 256}, ("intermediate_size is missing",)),
    ],
)
def test_contradictions_of_experts(overrides: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        parse_config(moe_config(**overrides))


def test_all_faults_come_together() -> None:
    with refused("vocab_size is missing", "block_dim is 64", "rope_theta is given neither", "conv_L_cache is 0"):
        parse_config(dense_config(vocab_size=None, block_dim=64, rope_theta=None, conv_L_cache=0))


@pytest.mark.parametrize(
    ("text", "part"),
    [(None, "not found"), ("{", "cannot be read as JSON"), ("[" * 100_000, "cannot be read as JSON"), ("[]", "list")],
    ids=["absent", "truncated", "nested", "a-list"],
)
def test_unreadable_files(text: str | None, part: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with refused("config.json", part):
        load_config(tmp_path)


@pytest.mark.parametrize("kind", PRESETS)
def test_published_shapes_are_read(kind: str) -> None:
    config = parse_config(preset(kind))
    assert config.n_layers == preset(kind)["num_hidden_layers"]
    assert config.of_kind(Attention)


def test_custom_code_is_named_and_never_run() -> None:
    (note,) = parse_config(dense_config(auto_map={"AutoConfig": "evil.Config"})).notes
    assert "auto_map" in note and "never run" in note


def test_published_configs_of_the_family(published_configs: Path) -> None:
    paths = sorted(published_configs.rglob("*.json"))
    if not paths:
        pytest.skip("tests/fixtures/configs holds no config yet")
    for path in paths:
        config = parse_config(json.loads(path.read_text()), where=str(path))
        assert numbers(config)["head_dim"] == (128 if path.stem.startswith("lfm3") else 64), path
