"""How much memory an artifact takes when it runs, beside its size on disk: an estimate from shapes alone."""

from __future__ import annotations

from ..convert.model.config import ModelConfig, Operator

# The context at which reports estimate; LFM2 chats on devices rarely go beyond.
CONTEXT_TOKENS = 4096
# Keys and values in 16 bits, as llama.cpp, ONNX Runtime's float16 graphs and MLX keep them by default.
_KEY_BYTES = 2
_CONV_BYTES = 4


def cache_bytes(config: ModelConfig, *, n_tokens: int = CONTEXT_TOKENS) -> int:
    """Bytes of the caches of one conversation: keys and values by token, and the windows of the convolutions."""
    n_attention = sum(operator is not Operator.SHORT_CONV for operator in config.operators)
    n_conv = config.n_layers - n_attention
    keys = 2 * n_attention * config.kv_size * n_tokens * _KEY_BYTES
    return keys + n_conv * config.hidden_size * (config.conv_width - 1) * _CONV_BYTES


def run_bytes(config: ModelConfig, size_bytes: int, *, n_tokens: int = CONTEXT_TOKENS) -> int:
    """Bytes of weights and caches; activations and the runtime itself come on top."""
    return size_bytes + cache_bytes(config, n_tokens=n_tokens)
