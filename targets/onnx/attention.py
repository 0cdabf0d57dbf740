"""Grouped-query attention: norms of heads, rotation, window, gate."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.blocks import Attention
from ...graph.errors import UsageError
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import MICROSOFT
from .encoder import attend_whole
from .functions import norm_heads
from .linear import add_bias, add_biases, linear, split
from .prelude import Context
from .rotary import Rotation, turn

# Source: ONNX Runtime `group_query_attention_helper.h`, CheckRotaryCaches.
_HEAD_MULTIPLE = 16


def attention(context: Context, block: Attention, layer: Layer, x: str) -> str:
    """out(attention of rotated heads), over keys and values that are kept in `past_key_values`.

    Every row's keys end at T - 1: padding is masked by the bias, and rotary angles only matter as
    differences, so that left-padded rows need no position input.
    """
    _refuse(context, block)
    b, store, prefix = context.b, context.store, f"model.layers.{layer.index}.self_attn"
    roles = [Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, *([Role.ATTN_GATE] if block.is_gated else [])]
    name = f"{prefix}.qkvg_proj" if block.is_gated else f"{prefix}.qkv_proj"
    qk, v, *gates = linear(b, store, x, name, [layer.weights[role] for role in roles], together=2)
    qk = add_biases(b, store, layer, (Role.ATTN_Q_BIAS, Role.ATTN_K_BIAS), qk)
    v = add_bias(b, store, layer, Role.ATTN_V_BIAS, v)
    if block.qk_norm is not None:
        gains = _head_gains(context, block, layer)
        n = block.n_heads + block.n_kv_heads
        qk = norm_heads(b, qk, gains, n_heads=n, head_dim=block.head_dim, norm=block.qk_norm)
    attend = attend_whole if context.is_whole else _attend_from_caches
    out = attend(context, block, layer.index, qk, v)
    for gate in gates:
        out = _gated(context, block, out, gate)
    (projected,) = linear(b, store, out, f"{prefix}.out_proj", [layer.weights[Role.ATTN_OUT]])
    projected = add_bias(b, store, layer, Role.ATTN_OUT_BIAS, projected)
    if block.is_biased:  # then padding is not zero
        projected = b.op("Mul", projected, context.prelude.token_mask)
    return projected


def _refuse(context: Context, block: Attention) -> None:
    """Raises UsageError for attention that `GroupQueryAttention` does not have."""
    if not (block.is_causal or context.is_whole):
        raise UsageError("onnx: cannot say attention to later tokens, which GroupQueryAttention does not see")
    if block.head_dim % _HEAD_MULTIPLE:
        raise UsageError(
            f"onnx: head_dim is {block.head_dim}; GroupQueryAttention rotates heads of a multiple of {_HEAD_MULTIPLE}"
        )


def _attend_from_caches(context: Context, block: Attention, i: int, qk: str, v: str) -> str:
    """The values of queries and keys side by side, before they turn."""
    b, rotation = context.b, context.prelude.rotations[block.rope] if block.rope else None
    if rotation and not rotation.is_inside:
        n_heads = block.n_heads + block.n_kv_heads
        qk, rotation = turn(b, qk, rotation, head_dim=block.head_dim, n_heads=n_heads), None
    q, k = split(b, qk, [block.q_size, block.kv_size])
    return _attend(context, block, i, (q, k, v), rotation)


def _attend(context: Context, block: Attention, i: int, qkv: Sequence[str], rotation: Rotation | None) -> str:
    """The values [B, S, n_heads * head_dim] that each head sees; `rotation` is still to be done."""
    b, n_kept = context.b, context.kept[i]
    span = context.prelude.spans[n_kept]
    tables: tuple[str, str] = "", ""
    options: dict[str, int | float] = {"do_rotary": 0}
    if rotation:
        tables, options = (rotation.cos, rotation.sin), {"do_rotary": 1}
        if rotation.pairs_neighbours:
            options["rotary_interleaved"] = 1
    if block.window is not None:
        options["local_window_size"] = block.window
    if block.score_scale is not None:
        options["scale"] = block.score_scale
    pasts, presents = ([f"{cache}.{i}.{part}" for part in ("key", "value")] for cache in ("past_key_values", "present"))
    out, *caches = b.ops(
        "GroupQueryAttention",
        *qkv, *pasts, span.last_position, span.total_length, *tables, "", span.attention_bias,
        outputs=(None, *(presents if n_kept is None else (None, None))),
        domain=MICROSOFT, num_heads=block.n_heads, kv_num_heads=block.n_kv_heads, **options,
    )  # fmt: skip
    if n_kept is not None:
        for cache, present in zip(caches, presents, strict=True):
            b.slice(cache, -n_kept, None, 2, output=present)
    return out


def _gated(context: Context, block: Attention, heads: str, gate: str) -> str:
    """Each head times the sigmoid of its number: heads [B, S, n_heads * head_dim], gate [B, S, n_heads]."""
    b = context.b
    apart = b.reshape(heads, 0, 0, block.n_heads, block.head_dim)
    shares = b.op("Unsqueeze", b.op("Sigmoid", gate), b.ints(3))
    return b.reshape(b.op("Mul", apart, shares), 0, 0, block.q_size)


def _head_gains(context: Context, block: Attention, layer: Layer) -> str:
    """The gain of each head of queries and keys: [n_heads + n_kv_heads, head_dim]."""
    b, gains = context.b, []
    for role, n_heads in ((Role.Q_NORM, block.n_heads), (Role.K_NORM, block.n_kv_heads)):
        weight = layer.weights[role]
        gain = context.store.add(weight.view.name, [weight], weight.shape).parts[0]
        gains.append(b.op("Expand", gain, b.ints(n_heads, block.head_dim)))
    return b.op("Concat", *gains, axis=0)
