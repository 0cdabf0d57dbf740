"""The gated short convolution."""

from __future__ import annotations

from functools import reduce

from ...graph.blocks import ShortConv
from ...graph.graph import Layer, Weight
from ...graph.roles import Role
from .builder import Var
from .prelude import Context
from .transposed import Transposed


def short_conv(context: Context, block: ShortConv, layer: Layer, x: Var) -> Var:
    """out(C * conv(B * x')), x' the third part of the projection.

    Taps are multiplied one by one: a depthwise convolution of so few taps leaves the Neural Engine for the CPU, twice
    a layer for the transpositions that it needs.
    """
    b, weights = context.b, layer.weights
    projected = b.linear(x, context.weight(weights[Role.CONV_IN]), _bias(context, layer, Role.CONV_IN_BIAS))
    gate_in, gate_out, value = b.split(projected, 3, -1)
    window = b.binary("mul", gate_in, value)
    hidden, n_past = window.shape[-1], 0
    if layer.index in context.past:
        past = context.past[layer.index]
        n_past = past.shape[1]
        window = b.concat([past, window], 1)
        context.kept[layer.index] = _last(context, window, n_past, hidden)
    taps = _taps(context, weights[Role.CONV_KERNEL])
    first = n_past - (block.width - 1)  # windows are as long as the longest convolution's
    products = []
    for k in range(block.width):
        shifted = b.slice(window, [0, first + k, 0], [1, first + k + context.n, hidden])
        products.append(b.binary("mul", shifted, b.slice(taps, [k, 0], [k + 1, hidden])))
    mixed = reduce(lambda x, y: b.binary("add", x, y), products)
    if (bias := _bias(context, layer, Role.CONV_KERNEL_BIAS)) is not None:
        mixed = b.binary("add", mixed, bias)
    out = b.binary("mul", gate_out, mixed)
    return b.linear(out, context.weight(weights[Role.CONV_OUT]), _bias(context, layer, Role.CONV_OUT_BIAS))


def _bias(context: Context, layer: Layer, role: Role) -> Var | None:
    weight = layer.weights.get(role)
    return None if weight is None else context.weight(weight)


def _last(context: Context, window: Var, n_past: int, hidden: int) -> Var:
    """The last positions that are real, of those before and the new ones."""
    if context.n_tokens is None:
        return context.b.slice(window, [0, context.n, 0], [1, context.n + n_past, hidden])
    return context.b.slice_at(window, context.at(0, context.n_tokens, 0), [1, n_past, hidden])


def _taps(context: Context, weight: Weight) -> Var:
    return context.b.constant(context.b.store.weight(weight, Transposed(weight.view)))
