"""The gated feed-forward that all tokens go through."""

from __future__ import annotations

from ...graph.blocks import Activation, Dense
from ...graph.graph import Layer
from ...graph.roles import Role
from .builder import MICROSOFT, GraphBuilder
from .linear import linear
from .prelude import Context


def dense(context: Context, block: Dense, layer: Layer, x: str) -> str:
    """down(activation(gate(x)) * up(x))."""
    b, store, prefix = context.b, context.store, f"model.layers.{layer.index}.feed_forward"
    weights = [layer.weights[role] for role in (Role.FFN_GATE, Role.FFN_UP)]
    gate, up = linear(b, store, x, f"{prefix}.gate_up_proj", weights)
    gated = gated_gelu(b, gate, up) if block.activation is Activation.GELU_TANH else gated_silu(b, gate, up)
    (out,) = linear(b, store, gated, f"{prefix}.down_proj", [layer.weights[Role.FFN_DOWN]])
    return out


def gated_silu(b: GraphBuilder, gate: str, up: str) -> str:
    """silu(gate) * up."""
    return b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)


def gated_gelu(b: GraphBuilder, gate: str, up: str) -> str:
    """gelu(gate) * up, by the tangent: the operator of every runtime, where `Gelu` of ONNX lacks kernels."""
    return b.op("Mul", b.op("FastGelu", gate, domain=MICROSOFT), up)
