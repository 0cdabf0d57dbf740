"""A model of short convolutions and attention for mlx-lm, which has no class for its model_type yet.

mlx-lm runs this file where it lies beside the weights, is named by `model_file` in config.json, and
`trust_remote_code=True` is given; lfm-convert runs its own copy. It needs mlx-lm 0.32 or later and nothing else.
Written by lfm-convert (Apache License 2.0).
"""

# mlx-lm runs it as no module that annotations could be looked up in later: they are not postponed here.
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import (
    BaseModelArgs,
    create_attention_mask,
    create_ssm_mask,
    scaled_dot_product_attention,
)
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache
from mlx_lm.models.rope_utils import initialize_rope

_CONV, _SLIDING = "conv", "sliding_attention"


@dataclass
class ModelArgs(BaseModelArgs):
    """The fields of config.json that say what the model is made of; ropes are by kind of layer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: list[str]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_parameters: dict[str, dict[str, Any]]
    sliding_window: int
    use_attention_gate: bool
    attention_bias: bool
    conv_L_cache: int
    conv_bias: bool
    use_sandwich_norm: bool
    norm_eps: float
    tie_word_embeddings: bool = True


class ShortConv(nn.Module):
    """Gated depthwise convolution: out_proj(C * conv(B * x)); the cache holds the last B * x of each row."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        hidden, biased = args.hidden_size, args.conv_bias
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=biased)
        self.conv = nn.Conv1d(hidden, hidden, args.conv_L_cache, groups=hidden, bias=biased)
        self.out_proj = nn.Linear(hidden, hidden, bias=biased)
        self.n_kept = args.conv_L_cache - 1

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        b, c, x = mx.split(self.in_proj(x), 3, axis=-1)
        gated = b * x
        if mask is not None:
            gated = mx.where(mask[..., None], gated, 0)
        kept = None if cache is None else cache[0]
        if kept is None:
            kept = mx.zeros((gated.shape[0], self.n_kept, gated.shape[2]), gated.dtype)
        inputs = mx.concatenate([kept, gated], axis=1)
        if cache is not None:
            cache[0] = self._last(inputs, gated.shape[1], cache.lengths)
            cache.advance(gated.shape[1])
        return self.out_proj(c * self.conv(inputs))

    def _last(self, inputs: mx.array, n_tokens: int, lengths: Any) -> mx.array:
        """What the next tokens look back at; of rows that are padded on the right, before the padding."""
        if lengths is None:
            return inputs[:, n_tokens:]
        ends = mx.clip(lengths, 0, n_tokens)[:, None] + mx.arange(self.n_kept)
        return mx.take_along_axis(inputs, ends[..., None], axis=1)


class Attention(nn.Module):
    """Grouped-query attention; the output of each head is multiplied by the sigmoid of its gate."""

    def __init__(self, args: ModelArgs, kind: str) -> None:
        super().__init__()
        hidden, heads, biased = args.hidden_size, args.num_attention_heads, args.attention_bias
        self.head_dim = size = args.head_dim
        self.q_proj = nn.Linear(hidden, heads * size, bias=biased)
        self.k_proj = nn.Linear(hidden, args.num_key_value_heads * size, bias=biased)
        self.v_proj = nn.Linear(hidden, args.num_key_value_heads * size, bias=biased)
        self.o_proj = nn.Linear(heads * size, hidden, bias=biased)
        self.q_norm = nn.RMSNorm(size, eps=args.norm_eps)
        self.k_norm = nn.RMSNorm(size, eps=args.norm_eps)
        self.is_gated = args.use_attention_gate
        if self.is_gated:
            self.gate_proj = nn.Linear(hidden, heads, bias=False)
        rope = args.rope_parameters[kind]
        self.rope = initialize_rope(size, rope["rope_theta"], False, rope)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        queries = self._heads(self.q_norm, self.q_proj(x))
        keys = self._heads(self.k_norm, self.k_proj(x))
        values = self._heads(None, self.v_proj(x))
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        out = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.head_dim**-0.5, mask=mask)
        out = out.transpose(0, 2, 1, 3)
        if self.is_gated:
            out = out * mx.sigmoid(self.gate_proj(x))[..., None]
        return self.o_proj(out.reshape(*x.shape[:2], -1))

    def _heads(self, norm: Any, projected: mx.array) -> mx.array:
        """[rows, heads, tokens, head_dim]"""
        heads = projected.reshape(*projected.shape[:2], -1, self.head_dim)
        return (heads if norm is None else norm(heads)).transpose(0, 2, 1, 3)


class FeedForward(nn.Module):
    """w2(silu(w1(x)) * w3(x))."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.w3 = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.w2 = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class Layer(nn.Module):
    """Two branches of the residual stream, each a norm, a block and perhaps another norm."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.kind = args.layer_types[index]
        self.window = args.sliding_window if self.kind == _SLIDING else None
        if self.kind == _CONV:
            self.conv = ShortConv(args)
        else:
            self.self_attn = Attention(args, self.kind)
        self.feed_forward = FeedForward(args)
        self.operator_norm = nn.RMSNorm(args.hidden_size, eps=args.norm_eps)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, eps=args.norm_eps)
        self.has_post_norms = args.use_sandwich_norm
        if self.has_post_norms:
            self.post_operator_norm = nn.RMSNorm(args.hidden_size, eps=args.norm_eps)
            self.post_ffn_norm = nn.RMSNorm(args.hidden_size, eps=args.norm_eps)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        mixer = self.conv if self.kind == _CONV else self.self_attn
        mixed = mixer(self.operator_norm(x), mask=mask, cache=cache)
        x = x + (self.post_operator_norm(mixed) if self.has_post_norms else mixed)
        fed = self.feed_forward(self.ffn_norm(x))
        return x + (self.post_ffn_norm(fed) if self.has_post_norms else fed)

    def mask(self, x: mx.array, cache: Any) -> Any:
        """Which positions the next tokens see, or which of them are padding."""
        if self.kind == _CONV:
            return create_ssm_mask(x, cache)
        return create_attention_mask(x, cache, window_size=self.window)

    def make_cache(self) -> Any:
        if self.kind == _CONV:
            return ArraysCache(size=1)
        return KVCache() if self.window is None else RotatingKVCache(max_size=self.window)


class Stack(nn.Module):
    """Embedding, layers, and the norm before the head."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Layer(args, index) for index in range(len(args.layer_types))]
        self.embedding_norm = nn.RMSNorm(args.hidden_size, eps=args.norm_eps)

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        x = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        masks: dict[str, Any] = {}  # one a kind: its layers have all seen the same tokens
        for layer, own in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            if layer.kind not in masks:
                masks[layer.kind] = layer.mask(x, own)
            x = layer(x, masks[layer.kind], own)
        return self.embedding_norm(x)


class Model(nn.Module):
    """What mlx-lm loads and calls."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Stack(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        x = self.model(inputs, cache, input_embeddings)
        return self.model.embed_tokens.as_linear(x) if self.args.tie_word_embeddings else self.lm_head(x)

    @property
    def layers(self) -> list[Layer]:
        return self.model.layers

    def make_cache(self) -> list[Any]:
        return [layer.make_cache() for layer in self.layers]
