"""The configs of published models of other families, spelled as their `config.json` files spell them, and small ones of the same kind.

Fields that no reader of a config looks at are left out. Source: the model cards' `config.json` files.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _qwen3(hidden: int, ffn: int, layers: int, heads: int) -> Config:
    return {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ffn,
        "max_position_embeddings": 40960, "max_window_layers": layers, "model_type": "qwen3",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip


def _llama32(hidden: int, layers: int, heads: int) -> Config:
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": hidden // heads, "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "vocab_size": 128256,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    }  # fmt: skip


def _gemma3(hidden: int, ffn: int, layers: int) -> Config:
    return {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
        "bos_token_id": 2, "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": hidden, "intermediate_size": ffn,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": layers, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "vocab_size": 262144,
    }  # fmt: skip


def _granite(**fields: Any) -> Config:
    return {
        "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_multiplier": 0.015625,
        "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "granite", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "rope_theta": 10000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49159, **fields,
    }  # fmt: skip


# Divisors of Phi-4-mini's pairs: of long texts they grow from one to some fifty.
_PHI_SHORT = [1.0] * 48
_PHI_LONG = [1.0 + 0.02 * i**2 for i in range(48)]

PUBLISHED: dict[str, Config] = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32),
    "Llama-3.2-1B": _llama32(2048, 16, 32),
    "Llama-3.2-3B": _llama32(3072, 28, 24),
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
        "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536, "max_window_layers": 28,
        "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128012,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 128256,
    },
    "Granite-3.3-2B": _granite(),
    "Granite-4.0-1B": _granite(
        architectures=["GraniteMoeHybridForCausalLM"], model_type="granitemoehybrid", attention_multiplier=0.0078125,
        hidden_size=2048, num_attention_heads=16, num_key_value_heads=4, shared_intermediate_size=4096,
        num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope", layer_types=["attention"] * 40,
        vocab_size=100352, bos_token_id=100257, eos_token_id=100257, pad_token_id=100256,
        mamba_n_heads=128, mamba_d_head=32, mamba_expand=2,
    ),
    "gemma-3-270m": _gemma3(640, 2048, 18),
    "gemma-3-1b": _gemma3(1152, 6912, 26),
    "gemma-3-4b": {
        **_gemma3(2560, 10240, 34), "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 1024,
        "max_position_embeddings": 131072, "vocab_size": 262208, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "Phi-4-mini": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "bos_token_id": 199999, "eos_token_id": 199999,
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199999,
        "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262144,
        "rope_scaling": {"long_factor": _PHI_LONG, "short_factor": _PHI_SHORT, "type": "longrope"},
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 200064,
    },
    "Qwen3-30B-A3B": {
        **_qwen3(2048, 6144, 48, 32), "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "Granite-3.1-1B-A400M": _granite(
        architectures=["GraniteMoeForCausalLM"], model_type="granitemoe", hidden_size=1024, intermediate_size=512,
        logits_scaling=6.0, num_attention_heads=16, num_hidden_layers=24, num_experts_per_tok=8, num_local_experts=32,
        rms_norm_eps=1e-6, rope_theta=1500000.0, vocab_size=49155,
    ),
}  # fmt: skip


def small(name: str, **fields: Any) -> Config:
    """A published config at a size that runs in a test: fewer and narrower layers, all else as it is."""
    found = {**PUBLISHED[name], **_SMALL, "torch_dtype": "float32"}
    n_layers = found["num_hidden_layers"]
    if "head_dim" in found:
        found["head_dim"] = 32  # which in Qwen3 and Gemma 3 is not the hidden size by the heads
    for key in ("layer_types", "no_rope_layers"):
        if key in found:
            found[key] = found[key][:n_layers]
    if found["model_type"] == "gemma3_text":
        found |= {"sliding_window": 12, "sliding_window_pattern": 3, "query_pre_attn_scalar": 24}
    if found["model_type"] == "phi3":
        n_pairs = 8 * 3 // 4
        found |= {"original_max_position_embeddings": 48, "sliding_window": 2 * found["max_position_embeddings"]}
        found["rope_scaling"] = {
            "type": "longrope",
            "short_factor": [1.0 + 0.01 * i for i in range(n_pairs)],
            "long_factor": [1.0 + 0.5 * i for i in range(n_pairs)],
        }
    if isinstance(scaling := found.get("rope_scaling"), dict) and "original_max_position_embeddings" in scaling:
        found["rope_scaling"] = {**scaling, "original_max_position_embeddings": 64}
    if found["model_type"] == "granitemoehybrid":
        found |= {"shared_intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_head": 16}
    if found.get("num_experts_per_tok"):
        found |= {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
        found |= {key: 8 for key in ("num_experts", "num_local_experts") if key in found}
    return {**found, **fields}


_SMALL: Config = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 640, "bos_token_id": 1, "eos_token_id": 7,
    "pad_token_id": 0,
}  # fmt: skip
