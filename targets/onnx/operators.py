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
    """What all layers share, computed once a run. B batch, S new tokens, T past and new tokens.

    Padding is zero from the embedding on, and stays so: norms, products without a bias and gates keep zeros, and
    padding attends only to padding, whose values are zero. What it leaves in a convolution's state is zero, then.
    """

    windows: str  # int64 [S, conv_L_cache]: which of past and new inputs each token's convolution reads
    token_mask: str  # [B, S, 1], 1 for a token, 0 for padding
    attention_bias: str  # [B, 1, S, T], very negative between a token and padding, either way, else 0
    last_position: str  # int32 [B]: T - 1
    total_length: str  # int32 [1]: T
    cos: str
    sin: str


def short_conv(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, x: str, prelude: Prelude) -> str:
    """out_proj(C * conv(B * x)), causal and depthwise over the window kept in `past_conv`.

    The state is the last conv_L_cache inputs. Each token's window is gathered and summed, which
    costs a tenth of a Conv node for one token and has a kernel on every execution provider.
    """
    width, prefix, i = config.conv_width, f"model.layers.{layer.index}.conv", layer.index
    (projected,) = linear(b, store, x, f"{prefix}.in_proj", [layer.weights[Role.CONV_IN]])
    projected = _add_bias(b, store, layer, Role.CONV_IN_BIAS, projected)
    gate_in, gate_out, value = b.ops("Split", projected, outputs=[None] * 3, axis=2, num_outputs=3)
    gated = b.op("Mul", gate_in, value)
    if config.conv_bias:  # then padding is not zero
        gated = b.op("Mul", gated, prelude.token_mask)
    past = b.op("Transpose", f"past_conv.{i}", perm=[0, 2, 1])
    inputs = b.op("Concat", past, gated, axis=1)
    b.op("Transpose", b.slice(inputs, -width, None, 1), perm=[0, 2, 1], output=f"present_conv.{i}")
    kernel = store.add(f"{prefix}.conv", [layer.weights[Role.CONV_KERNEL]]).parts[0]
    products = b.op("Mul", b.op("Gather", inputs, prelude.windows, axis=1), b.op("Transpose", kernel, perm=[1, 0]))
    mixed = b.op("ReduceSum", products, b.ints(2), keepdims=0)
    mixed = _add_bias(b, store, layer, Role.CONV_KERNEL_BIAS, mixed)
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
    q, k, v = linear(b, store, x, f"{prefix}.qkv_proj", [layer.weights[role] for role in roles])
    q = _normed_heads(b, store, config, layer, Role.Q_NORM, q)
    k = _normed_heads(b, store, config, layer, Role.K_NORM, k)
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


def _normed_heads(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, role: Role, x: str) -> str:
    weight = layer.weights[role]
    gain = store.add(weight.view.name, [weight], weight.shape).parts[0]
    heads = norm(b, config, b.reshape(x, 0, 0, -1, config.head_dim), gain)
    return b.reshape(heads, 0, 0, config.q_size if role is Role.Q_NORM else config.kv_size)
