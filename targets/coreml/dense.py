"""The gated feed-forward that all tokens go through."""

from __future__ import annotations

from ...graph.blocks import Dense
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import Builder, Var
from .prelude import Context


def dense(context: Context, block: Dense, layer: Layer, x: Var) -> Var:
    """down(silu(gate(x)) * up(x))."""
    b = context.b
    gate, up = (b.linear(x, context.weight(layer.weights[role])) for role in (Role.FFN_GATE, Role.FFN_UP))
    return b.linear(gated_silu(b, gate, up), context.weight(layer.weights[Role.FFN_DOWN]))


def gated_silu(b: Builder, gate: Var, up: Var) -> Var:
    """silu(gate) * up."""
    return b.binary("mul", b.unary("silu", gate), up)
