"""The two operators that mix tokens: gated short convolution and grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass

from ...convert.model.config import ModelConfig
from ...convert.model.graph import Layer, Role
from .builder import MICROSOFT, GraphBuilder
from .functions import causal_conv, norm_heads
from .linear import linear, split
from .store import WeightStore


@dataclass(frozen=True)
class Prelude:
    """What all layers share, computed once a run. B batch, S new tokens, T past and new tokens.

    Padding is zero from the embedding on, and stays so: norms, products without a bias and gates keep zeros, and
    padding attends only to padding, whose values are zero. What it leaves in a convolution's state is zero, then.
    """

    token_mask: str  # [B, S, 1], 1 for a token, 0 for padding
    attention_bias: str  # [B, 1, S, T], very negative between a token and padding, either way, else 0
    last_position: str  # int32 [B]: T - 1
    total_length: str  # int32 [1]: T
    cos: str
    sin: str


def short_conv(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, x: str, prelude: Prelude) -> str:
    """out_proj(C * conv(B * x)), causal and depthwise over the last conv_L_cache inputs, kept in `past_conv`."""
    prefix, i = f"model.layers.{layer.index}.conv", layer.index
    (projected,) = linear(b, store, x, f"{prefix}.in_proj", [layer.weights[Role.CONV_IN]])
    projected = _add_bias(b, store, layer, Role.CONV_IN_BIAS, projected)
    gate_in, gate_out, value = b.ops("Split", projected, outputs=[None] * 3, axis=2, num_outputs=3)
    gated = b.op("Mul", gate_in, value)
    if config.conv_bias:  # then padding is not zero
        gated = b.op("Mul", gated, prelude.token_mask)
    shape = (config.hidden_size, 1, config.conv_width)
    kernel = store.add(f"{prefix}.conv", [layer.weights[Role.CONV_KERNEL]], shape).parts[0]
    inputs = b.op("Transpose", gated, perm=[0, 2, 1])
    mixed = causal_conv(b, inputs, kernel, config, past=f"past_conv.{i}", present=f"present_conv.{i}")
    mixed = _add_bias(b, store, layer, Role.CONV_KERNEL_BIAS, b.op("Transpose", mixed, perm=[0, 2, 1]))
    gated = b.op("Mul", gate_out, mixed)
    (out,) = linear(b, store, gated, f"{prefix}.out_proj", [layer.weights[Role.CONV_OUT]])
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
    weights = [layer.weights[role] for role in roles]
    qk, v = linear(b, store, x, f"{prefix}.qkv_proj", weights, together=2)
    normed = norm_heads(b, config, qk, _head_gains(b, store, config, layer))
    q, k = split(b, normed, [config.q_size, config.kv_size])
    out, _, _ = b.ops(
        "GroupQueryAttention",
        q, k, v,
        f"past_key_values.{i}.key", f"past_key_values.{i}.value",
        prelude.last_position, prelude.total_length, prelude.cos, prelude.sin, "", prelude.attention_bias,
        outputs=(None, f"present.{i}.key", f"present.{i}.value"),
        domain=MICROSOFT, num_heads=config.n_heads, kv_num_heads=config.n_kv_heads, do_rotary=1,
    )  # fmt: skip
    (projected,) = linear(b, store, out, f"{prefix}.out_proj", [layer.weights[Role.ATTN_OUT]])
    return projected


def _head_gains(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer) -> str:
    """The gain of each head of queries and keys: [n_heads + n_kv_heads, head_dim]."""
    gains = []
    for role, n_heads in ((Role.Q_NORM, config.n_heads), (Role.K_NORM, config.n_kv_heads)):
        weight = layer.weights[role]
        gain = store.add(weight.view.name, [weight], weight.shape).parts[0]
        gains.append(b.op("Expand", gain, b.ints(n_heads, config.head_dim)))
    return b.op("Concat", *gains, axis=0)
