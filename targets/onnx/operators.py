"""The two operators that mix tokens: gated short convolution and grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass

from ...convert.model.config import ModelConfig
from ...convert.model.graph import Layer, Role
from .builder import MICROSOFT, GraphBuilder
from .linear import linear
from .store import WeightStore


@dataclass(frozen=True)
class Prelude:
    """What all layers share, computed once a run. B batch, S new tokens, T past and new tokens."""

    batch_sequence: str  # int64 [2]: B, S
    token_mask: str  # [B, S, 1], 1 for a token, 0 for padding
    attention_bias: str  # [B, 1, S, T], 0 for a token, very negative for padding
    last_position: str  # int32 [B]: T - 1
    total_length: str  # int32, rank 0: T
    cos: str
    sin: str


def to_sequences(b: GraphBuilder, prelude: Prelude, x: str, *features: int) -> str:
    """[B * S, n] as [B, S, *features]."""
    return b.op("Reshape", x, b.op("Concat", prelude.batch_sequence, b.ints(*features), axis=0))


def short_conv(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, x: str, prelude: Prelude) -> str:
    """out_proj(C * conv(B * x)), causal and depthwise over the window kept in `past_conv`.

    The window is the last conv_L_cache inputs, padding zeroed. Taps are applied as shifted products,
    which costs less than a Conv node for one token and has a kernel on every execution provider.
    """
    width, prefix, i = config.conv_width, f"model.layers.{layer.index}.conv", layer.index
    (projected,) = linear(b, store, x, f"{prefix}.in_proj", [layer.weights[Role.CONV_IN]])
    projected = _add_bias(b, store, layer, Role.CONV_IN_BIAS, projected)
    sequences = to_sequences(b, prelude, projected, 3 * config.hidden_size)
    gate_in, gate_out, value = b.ops("Split", sequences, outputs=[None] * 3, axis=2, num_outputs=3)
    gated = b.op("Mul", b.op("Mul", gate_in, value), prelude.token_mask)
    past = b.op("Transpose", f"past_conv.{i}", perm=[0, 2, 1])
    window = b.op("Concat", past, gated, axis=1)
    b.op("Transpose", b.slice(window, -width, None, 1), perm=[0, 2, 1], output=f"present_conv.{i}")
    kernel = store.add(f"{prefix}.conv", [layer.weights[Role.CONV_KERNEL]]).parts[0]
    mixed = ""
    for tap in range(width):
        oldest = b.slice(window, tap + 1, tap + 1 - width or None, 1)
        weight = b.op("Gather", kernel, b.constant(tap, "<i8"), axis=1)
        product = b.op("Mul", oldest, weight)
        mixed = b.op("Add", mixed, product) if mixed else product
    mixed = _add_bias(b, store, layer, Role.CONV_KERNEL_BIAS, mixed)
    flat = b.reshape(b.op("Mul", gate_out, mixed), -1, config.hidden_size)
    (out,) = linear(b, store, flat, f"{prefix}.out_proj", [layer.weights[Role.CONV_OUT]])
    return _add_bias(b, store, layer, Role.CONV_OUT_BIAS, out)


def _add_bias(b: GraphBuilder, store: WeightStore, layer: Layer, role: Role, x: str) -> str:
    weight = layer.weights.get(role)
    return b.op("Add", x, store.add(weight.view.name, [weight], weight.shape).parts[0]) if weight else x


def norm(b: GraphBuilder, config: ModelConfig, x: str, gain: str) -> str:
    """Root-mean-square norm over the last axis."""
    return b.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=config.norm_eps, stash_type=1)


def attention(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, x: str, prelude: Prelude) -> str:
    """Grouped-query attention with per-head norms before the rotation.

    Every row's keys end at T - 1: padding is masked by the bias, and rotary angles only matter as
    differences, so that left-padded rows need no position input.
    """
    i, prefix = layer.index, f"model.layers.{layer.index}.self_attn"
    roles = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
    q, k, v = linear(b, store, x, f"{prefix}.qkv_proj", [layer.weights[role] for role in roles])
    q = _normed_heads(b, store, config, layer, Role.Q_NORM, q, prelude)
    k = _normed_heads(b, store, config, layer, Role.K_NORM, k, prelude)
    out, _, _ = b.ops(
        "GroupQueryAttention",
        q, k, to_sequences(b, prelude, v, config.kv_size),
        f"past_key_values.{i}.key", f"past_key_values.{i}.value",
        prelude.last_position, prelude.total_length, prelude.cos, prelude.sin, "", prelude.attention_bias,
        outputs=(None, f"present.{i}.key", f"present.{i}.value"),
        domain=MICROSOFT, num_heads=config.n_heads, kv_num_heads=config.n_kv_heads, do_rotary=1,
    )  # fmt: skip
    (projected,) = linear(
        b, store, b.reshape(out, -1, config.q_size), f"{prefix}.out_proj", [layer.weights[Role.ATTN_OUT]]
    )
    return projected


def _normed_heads(
    b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, role: Role, x: str, prelude: Prelude
) -> str:
    weight = layer.weights[role]
    gain = store.add(weight.view.name, [weight], weight.shape).parts[0]
    heads = norm(b, config, b.reshape(x, -1, config.head_dim), gain)
    return to_sequences(b, prelude, heads, config.q_size if role is Role.Q_NORM else config.kv_size)
