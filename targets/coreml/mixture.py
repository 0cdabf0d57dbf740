"""Mixture of experts: of one token the chosen experts are gathered; of a chunk all of them run, weighed by zero or more.

A chunk of 64 tokens meets nearly all experts anyway, and Core ML has no loop over those that it meets.
"""

from __future__ import annotations

import numpy as np

from ...graph.blocks import Activation, Mixture, Scoring
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import Var
from .dense import gated
from .mil import Dtype
from .prelude import Context, counting

_EXPERTS = (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN)


def mixture(context: Context, block: Mixture, layer: Layer, x: Var) -> Var:
    """Sum of the chosen experts' results [1, n, H], each by its weight."""
    b, n = context.b, context.n
    chosen, weights = _route(context, block, layer, b.reshape(x, n, x.shape[-1]))
    experts = [context.weight(layer.weights[role]) for role in _EXPERTS]
    if n == 1:
        rows = b.reshape(chosen, block.top_k)
        experts = [b.gather(stack, rows) for stack in experts]
        shares = b.reshape(weights, block.top_k, 1, 1)
    else:
        shares = b.reshape(b.transpose(_of_all(context, block, chosen, weights), 1, 0), block.n_experts, n, 1)
    gate, up = (b.matmul(x, stack, transpose_y=True) for stack in experts[:2])
    found = b.cast(b.matmul(gated(b, Activation.SILU, gate, up), experts[2], transpose_y=True), Dtype.FLOAT32)
    total = b.reduce("reduce_sum", b.binary("mul", found, shares), 0, keep=True)
    return b.cast(total, Dtype.FLOAT16)


def _route(context: Context, block: Mixture, layer: Layer, x: Var) -> tuple[Var, Var]:
    """The experts of each token, int32 [n, top_k], and their weights, float32; all in float32, or near-ties turn over."""
    b = context.b
    outputs = b.linear(b.cast(x, Dtype.FLOAT32), context.weight(layer.weights[Role.ROUTER]))
    is_sigmoid = block.scoring is Scoring.SIGMOID
    scores = b.unary("sigmoid", outputs) if is_sigmoid else b.unary("softmax", outputs, axis=-1)
    bias = layer.weights.get(Role.EXPERT_BIAS)
    ranked = scores if bias is None else b.binary("add", scores, context.weight(bias))
    shape = (context.n, block.top_k)
    _, chosen = b.emit(
        "topk", [(Dtype.FLOAT32, shape), (Dtype.INT32, shape)],
        x=ranked, k=block.top_k, axis=-1, ascending=False, sort=True, return_indices=True, output_indices_dtype="int32",
    )  # fmt: skip
    weights = b.one(
        "gather_along_axis", Dtype.FLOAT32, shape, x=scores, indices=chosen, axis=-1, validate_indices=False
    )
    if block.is_normalised:
        total = b.reduce("reduce_sum", weights, -1, keep=True)
        if block.sum_eps:
            total = b.binary("add", total, np.float32(block.sum_eps))
        weights = b.binary("real_div", weights, total)
    return chosen, b.scaled(weights, block.scaling)


def _of_all(context: Context, block: Mixture, chosen: Var, weights: Var) -> Var:
    """Weights of all experts [n, experts], zero for those that are not chosen."""
    b, shape = context.b, (context.n, block.top_k, 1)
    places = b.reshape(b.cast(chosen, Dtype.FLOAT32), *shape)
    is_it = b.binary("equal", places, counting(b, block.n_experts, 1, 1, block.n_experts), is_bool=True)
    spread = b.binary("mul", b.cast(is_it, Dtype.FLOAT32), b.reshape(weights, *shape))
    return b.reduce("reduce_sum", spread, 1, keep=False)
