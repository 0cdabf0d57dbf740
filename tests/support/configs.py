"""Config dicts of random checkpoints, spelled as the published `config.json` files spell them.

Overrides replace fields of the finished dict; an override of None removes the field.
Source: the configs of LFM2-350M … LFM2-24B-A2B and LFM2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

_ATTENTION_16 = (2, 5, 8, 10, 12, 14)
_ATTENTION_24 = (2, 6, 10, 14, 18, 21)
_ATTENTION_30 = (2, 5, 9, 13, 17, 21, 24, 27)
_ATTENTION_40 = (2, 6, 10, 14, 18, 22, 26, 30, 34, 38)


def dense_config(
    *, hidden_size: int = 128, num_hidden_layers: int = 4, attention: Sequence[int] = (1, 3), **overrides: Any
) -> Config:
    """An LFM2 config in the first spelling: block_ff_dim with adjustment, full_attn_idxs, rope_theta.

    The default's 384 means 256 rows of w1.
    """
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": True,
        "block_dim": hidden_size,
        "block_ff_dim": 384,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "block_norm_eps": 1e-5,
        "block_use_swiglu": True,
        "conv_dim": hidden_size,
        "conv_dim_out": hidden_size,
        "full_attn_idxs": list(attention),
        "model_type": "lfm2",
        "num_heads": overrides.get("num_attention_heads", 4),
        "tie_embedding": True,
        **_common(hidden_size, num_hidden_layers),
    }
    return _override(config, overrides)


def dense_25_config(
    *, hidden_size: int = 128, num_hidden_layers: int = 4, attention: Sequence[int] = (1, 3), **overrides: Any
) -> Config:
    """An LFM2.5 config in the later spelling: intermediate_size as is, layer_types, rope_parameters."""
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": False,
        "intermediate_size": 256,
        "layer_types": _layer_types(num_hidden_layers, attention),
        "model_type": "lfm2",
        "tie_word_embeddings": True,
        **_common(hidden_size, num_hidden_layers),
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "dtype": "bfloat16",
    }
    return _override(config, {"rope_theta": None, "torch_dtype": None, **overrides})


def moe_config(
    *, hidden_size: int = 128, num_hidden_layers: int = 4, attention: Sequence[int] = (1, 3), **overrides: Any
) -> Config:
    """An LFM2-MoE config as LFM2-8B-A1B is published: one dense layer, then eight experts, four at a time."""
    config = {
        "architectures": ["Lfm2MoeForCausalLM"],
        "intermediate_size": 256,
        "layer_types": _layer_types(num_hidden_layers, attention),
        "model_type": "lfm2_moe",
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.0,
        "tie_embedding": True,
        "use_expert_bias": True,
        **_common(hidden_size, num_hidden_layers),
    }
    return _override(config, overrides)


def lfm3_config(*, hidden_size: int = 128, num_hidden_layers: int = 6, **overrides: Any) -> Config:
    """An LFM3 config as LFM3-1.7B is published, which leaves out what is its class's default.

    Layers: conv conv full conv sliding conv …; heads that do not fill the hidden size; a window of 16.
    """
    config = {
        "architectures": ["Lfm3ForCausalLM"],
        "head_dim": 48,
        "intermediate_size": 200,
        "layer_types": [
            "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 and i > 0 else "conv"
            for i in range(num_hidden_layers)
        ],
        "model_type": "lfm3",
        "sliding_window": 16,
        "tie_word_embeddings": True,
        **_common(hidden_size, num_hidden_layers),
        "conv_L_cache": 7,
        "dtype": "bfloat16",
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    }
    return _override(config, {"rope_theta": None, "torch_dtype": None, **overrides})


def preset(kind: str) -> Config:
    """The config of a published shape, or of the peer benchmark's `moe-1.2b`. Raises: KeyError."""
    make, fields = PRESETS[kind]
    return make(**fields)


PRESETS = {
    "tiny-dense": (dense_config, {}),
    "tiny-moe": (moe_config, {}),
    "tiny-lfm3": (lfm3_config, {}),
    "dense-230m": (dense_25_config, {
        "hidden_size": 1024, "num_hidden_layers": 14, "attention": (2, 4, 6, 8, 10, 12),
        "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2560, "vocab_size": 65536,
    }),
    "dense-350m": (dense_config, {
        "hidden_size": 1024, "num_hidden_layers": 16, "attention": _ATTENTION_16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "block_ff_dim": 6656, "vocab_size": 65536,
    }),
    "dense-700m": (dense_config, {
        "hidden_size": 1536, "num_hidden_layers": 16, "attention": _ATTENTION_16,
        "num_attention_heads": 24, "num_key_value_heads": 8, "block_ff_dim": 10240, "vocab_size": 65536,
    }),
    "dense-1.2b": (dense_config, {
        "hidden_size": 2048, "num_hidden_layers": 16, "attention": _ATTENTION_16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "block_ff_dim": 12288, "vocab_size": 65536,
    }),
    "dense-2.6b": (dense_25_config, {
        "hidden_size": 2048, "num_hidden_layers": 30, "attention": _ATTENTION_30,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 10752, "vocab_size": 128000,
        "rope_parameters": {"rope_theta": 1e7, "rope_type": "default"},
    }),
    "lfm3-1.7b": (lfm3_config, {
        "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 128, "intermediate_size": 7680, "sliding_window": 256, "vocab_size": 128000,
    }),
    "moe-1.2b": (moe_config, {
        "hidden_size": 1024, "num_hidden_layers": 16, "attention": _ATTENTION_16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 4096,
        "moe_intermediate_size": 768, "num_dense_layers": 2, "num_experts": 32, "vocab_size": 65536,
    }),
    "moe-8b": (moe_config, {
        "hidden_size": 2048, "num_hidden_layers": 24, "attention": _ATTENTION_24,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 7168,
        "moe_intermediate_size": 1792, "num_dense_layers": 2, "num_experts": 32, "vocab_size": 65536,
    }),
    "moe-24b": (moe_config, {
        "hidden_size": 2048, "num_hidden_layers": 40, "attention": _ATTENTION_40,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 11776,
        "moe_intermediate_size": 1536, "num_dense_layers": 2, "num_experts": 64, "vocab_size": 65536,
    }),
}  # fmt: skip


def _common(hidden_size: int, num_hidden_layers: int) -> Config:
    return {
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": 7,
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "num_attention_heads": 4,
        "num_hidden_layers": num_hidden_layers,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 512,
    }


def _layer_types(n_layers: int, attention: Sequence[int]) -> list[str]:
    return ["full_attention" if i in attention else "conv" for i in range(n_layers)]


def _override(config: Config, overrides: Config) -> Config:
    merged = {**config, **overrides}
    return {key: merged[key] for key in sorted(merged) if merged[key] is not None}
