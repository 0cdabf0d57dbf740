"""Grouped-query attention: norms of heads, rotation, window, gate."""

from __future__ import annotations

from ...graph.blocks import Attention, Rope
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import Var
from .norm import norm
from .prelude import Context


def attention(context: Context, block: Attention, layer: Layer, x: Var) -> Var:
    """out(attention of rotated heads over what is kept and the new positions)."""
    b, n, size = context.b, context.n, block.head_dim
    q = _heads(context, block, layer, x, (Role.ATTN_Q, Role.ATTN_Q_BIAS, Role.Q_NORM), block.n_heads)
    k = _heads(context, block, layer, x, (Role.ATTN_K, Role.ATTN_K_BIAS, Role.K_NORM), block.n_kv_heads)
    v = b.reshape(_project(context, layer, x, Role.ATTN_V, Role.ATTN_V_BIAS), n, block.n_kv_heads, size)
    keys, values = _remember(context, block, layer.index, b.transpose(k, 1, 0, 2), b.transpose(v, 1, 0, 2))
    window = context.caches.rows[layer.index].window
    found = _attend(context, block, b.transpose(q, 1, 0, 2), keys, values, context.masks[window])
    heads = b.transpose(found, 1, 0, 2)
    if block.is_gated:
        gate = b.unary("sigmoid", b.linear(x, context.weight(layer.weights[Role.ATTN_GATE])))
        heads = b.binary("mul", heads, b.reshape(gate, n, block.n_heads, 1))
    return _project(context, layer, b.reshape(heads, 1, n, block.q_size), Role.ATTN_OUT, Role.ATTN_OUT_BIAS)


def _project(context: Context, layer: Layer, x: Var, role: Role, bias: Role) -> Var:
    added = layer.weights.get(bias)
    weight = context.weight(layer.weights[role])
    return context.b.linear(x, weight, None if added is None else context.weight(added))


def _heads(
    context: Context, block: Attention, layer: Layer, x: Var, roles: tuple[Role, Role, Role], n_heads: int
) -> Var:
    """Queries or keys [n, heads, head_dim], normed and turned."""
    role, bias, gain = roles
    heads = context.b.reshape(_project(context, layer, x, role, bias), context.n, n_heads, block.head_dim)
    if block.qk_norm is not None:
        heads = norm(context, block.qk_norm, layer.weights[gain], heads)
    if block.rope is None:
        return heads
    return _turn(context, heads, block.rope)


def _turn(context: Context, x: Var, rope: Rope) -> Var:
    """Heads of which the paired numbers are turned, and the rest stays."""
    b, (n, n_heads, size) = context.b, x.shape
    if rope.n_dims == size:
        return _turn_all(context, x, rope)
    paired = b.slice(x, [0, 0, 0], [n, n_heads, rope.n_dims])
    rest = b.slice(x, [0, 0, rope.n_dims], [n, n_heads, size])
    return b.concat([_turn_all(context, paired, rope), rest], -1)


def _turn_all(context: Context, x: Var, rope: Rope) -> Var:
    b, shape, rotation = context.b, x.shape, context.rotations[rope]
    cos, sin = rotation.cos, rotation.sin
    if rope.pairs_neighbours:
        half = shape[-1] // 2
        x = b.reshape(x, *shape[:-1], half, 2)
        cos, sin = (b.reshape(each, shape[0], 1, half, 1) for each in (cos, sin))
    first, second = b.split(x, 2, -1)
    turned = [
        b.binary("sub", b.binary("mul", first, cos), b.binary("mul", second, sin)),
        b.binary("add", b.binary("mul", second, cos), b.binary("mul", first, sin)),
    ]
    return b.reshape(b.concat(turned, -1), *shape)


def _remember(context: Context, block: Attention, layer: int, k: Var, v: Var) -> tuple[Var, Var]:
    """Keys and values [kv_heads, positions, head_dim] of all positions that the mask speaks of; writes the new ones."""
    b, rows, n_heads, size = context.b, context.caches.rows[layer], block.n_kv_heads, block.head_dim
    new = b.concat([k, v], -1)
    if context.caches.kv_cache is None or not rows.count:  # a window of one sees nothing but itself
        return k, v
    cache, width = b.read_state(context.caches.kv_cache), 2 * size
    first, last = [0, rows.start, 0], [n_heads, rows.stop, width]
    if rows.window is None:
        begin = context.at(0, b.binary("add", context.position, rows.start), 0)
        end = b.binary("add", begin, b.literal([n_heads, context.n, width]))
        b.write_state(context.caches.kv_cache, b.unary("slice_update", cache, update=new, begin=begin, end=end))
        seen = b.slice(b.read_state(context.caches.kv_cache), first, last)
    else:
        seen = b.concat([b.slice(cache, first, last), new], 1)
        kept = _last(context, seen, rows.count)
        b.write_state(context.caches.kv_cache, b.unary("slice_update", cache, update=kept, begin=first, end=last))
    n_keys = seen.shape[1]
    return b.slice(seen, [0, 0, 0], [n_heads, n_keys, size]), b.slice(seen, [0, 0, size], [n_heads, n_keys, width])


def _last(context: Context, seen: Var, count: int) -> Var:
    """As many of the last positions that are real."""
    heads, _, width = seen.shape
    if context.n_tokens is None:
        return context.b.slice(seen, [0, context.n, 0], [heads, context.n + count, width])
    return context.b.slice_at(seen, context.at(0, context.n_tokens, 0), [heads, count, width])


def _attend(context: Context, block: Attention, q: Var, keys: Var, values: Var, mask: Var) -> Var:
    """The values [heads, n, head_dim] that queries see; heads that share keys are rows of one product."""
    b, n, n_kv = context.b, context.n, block.n_kv_heads
    shared, n_keys = block.n_heads // n_kv, keys.shape[1]
    q = b.reshape(b.scaled(q, block.scale), n_kv, shared * n, block.head_dim)
    scores = b.reshape(b.matmul(q, keys, transpose_y=True), n_kv, shared, n, n_keys)
    shares = b.unary("softmax", b.binary("add", scores, mask), axis=-1)
    found = b.matmul(b.reshape(shares, n_kv, shared * n, n_keys), values)
    return b.reshape(found, block.n_heads, n, block.head_dim)
