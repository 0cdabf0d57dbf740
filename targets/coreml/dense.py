"""The gated feed-forward that all tokens go through."""

from __future__ import annotations

from collections.abc import Mapping

from ...graph.blocks import Activation, Dense
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import Builder, Literal, Var
from .prelude import Context

# The operation that an activation is, and how it is told so.
_OPERATIONS: Mapping[Activation, tuple[str, Mapping[str, Literal]]] = {
    Activation.SILU: ("silu", {}),
    Activation.GELU_TANH: ("gelu", {"mode": "TANH_APPROXIMATION"}),
}


def dense(context: Context, block: Dense, layer: Layer, x: Var) -> Var:
    """down(activation(gate(x)) * up(x))."""
    b = context.b
    gate, up = (b.linear(x, context.weight(layer.weights[role])) for role in (Role.FFN_GATE, Role.FFN_UP))
    return b.linear(gated(b, block.activation, gate, up), context.weight(layer.weights[Role.FFN_DOWN]))


def gated(b: Builder, activation: Activation, gate: Var, up: Var) -> Var:
    """activation(gate) * up."""
    kind, options = _OPERATIONS[activation]
    return b.binary("mul", b.unary(kind, gate, **options), up)
