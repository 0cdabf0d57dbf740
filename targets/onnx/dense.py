"""The gated feed-forward that all tokens go through."""

from __future__ import annotations

from ...graph.blocks import Dense
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import GraphBuilder
from .linear import linear
from .prelude import Context


def dense(context: Context, block: Dense, layer: Layer, x: str) -> str:
    """down(silu(gate(x)) * up(x))."""
    b, store, prefix = context.b, context.store, f"model.layers.{layer.index}.feed_forward"
    weights = [layer.weights[role] for role in (Role.FFN_GATE, Role.FFN_UP)]
    gate, up = linear(b, store, x, f"{prefix}.gate_up_proj", weights)
    (out,) = linear(b, store, gated_silu(b, gate, up), f"{prefix}.down_proj", [layer.weights[Role.FFN_DOWN]])
    return out


def gated_silu(b: GraphBuilder, gate: str, up: str) -> str:
    """silu(gate) * up."""
    return b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
