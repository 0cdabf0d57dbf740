"""Operators younger than the oldest runtime we serve, each with the function that such a runtime runs instead.

A graph may define a function under the name of an operator. A runtime that knows the operator takes its own kernel,
one that does not takes the function's nodes: one file is as fast as each runtime can be, and none refuses it. A name
has one function, that of the first block that asks: blocks of other sizes have its nodes in their place.
Source: ONNX IR, model-local functions; ONNX Runtime contrib operators, com.microsoft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...graph.blocks import Norm
from .builder import MICROSOFT, OPSETS, GraphBuilder

_CONV = "CausalConvWithState"  # from ONNX Runtime 1.25.1 on
_NORM = "BranchwiseRMSNorm"  # from ONNX Runtime 1.31 on


def causal_conv(b: GraphBuilder, x: str, kernel: str, *, width: int, n_channels: int, past: str, present: str) -> str:
    """Each channel's sum of taps times its last inputs, causal. S new inputs, H channels, K taps.

    Shapes: x and the result [B, H, S]; kernel [H, 1, K]; past and present [B, H, K].
    The operator remembers one input less than it has taps, so it gets a tap of zero before the first. In half precision
    its nodes are written out: the CPU has the operator in float32 only, and would take new inputs unrounded but past
    ones rounded, so that a prompt in chunks would not be the whole prompt.
    """
    zeros = b.constant(np.zeros((n_channels, 1, 1)), b.float_dtype)
    taps = b.op("Concat", zeros, kernel, axis=2)
    if b.is_half or not b.defines(_CONV, width, lambda: _conv(width, b.float_type)):
        return _convolve(b, x, taps, past, width, present=present)
    return b.ops(_CONV, x, taps, "", past, outputs=(None, present), domain=MICROSOFT)[0]


def norm_heads(b: GraphBuilder, x: str, gains: str, *, n_heads: int, head_dim: int, norm: Norm) -> str:
    """The norm of each of the heads that lie side by side. Shapes: x and the result [B, S, n_heads * head_dim]; gains [n_heads, head_dim]."""
    sizes = (n_heads, head_dim, norm.eps)
    if not b.defines(_NORM, sizes, lambda: _norm(b.float_type, *sizes)):
        return _norm_apart(b, x, gains, *sizes)
    return b.op(_NORM, x, gains, domain=MICROSOFT, num_branches=n_heads, epsilon=norm.eps)


def _conv(width: int, float_type: int) -> Any:
    b = GraphBuilder(float_type)
    _convolve(b, "input", "weight", "past_state", width, present="present_state", output="output")
    return _function(b, _CONV, ["input", "weight", "bias", "past_state"], ["output", "present_state"])


def _convolve(
    b: GraphBuilder, x: str, weight: str, past: str, width: int, *, present: str, output: str | None = None
) -> str:
    inputs = b.op("Concat", past, x, axis=2)
    b.slice(inputs, -width, None, 2, output=present)
    rows = b.op("Squeeze", weight, b.ints(1))
    taps = b.ops("Split", rows, outputs=[None] * (width + 1), axis=1, num_outputs=width + 1)
    total = ""
    for k in range(1, width + 1):  # the first tap is zero
        product = b.op("Mul", b.slice(inputs, k, (k - width) or None, 2), taps[k])
        total = b.op("Add", total, product, output=output if k == width else None) if total else product
    return total


def _norm(float_type: int, n_heads: int, head_dim: int, eps: float) -> Any:
    b = GraphBuilder(float_type)
    _norm_apart(b, "X", "scale", n_heads, head_dim, eps, output="Y")
    return _function(b, _NORM, ["X", "scale"], ["Y"], attributes=["num_branches", "epsilon"])


def _norm_apart(
    b: GraphBuilder, x: str, gains: str, n_heads: int, head_dim: int, eps: float, *, output: str | None = None
) -> str:
    """The gains are multiplied by themselves: WebGPU's norm takes one gain for all heads."""
    heads = b.reshape(x, 0, 0, n_heads, head_dim)
    ones = b.constant(np.ones(head_dim), b.float_dtype)
    normed = b.op("SimplifiedLayerNormalization", heads, ones, axis=-1, epsilon=eps, stash_type=1)
    scaled = b.op("Mul", normed, gains)
    return b.op("Reshape", scaled, b.ints(0, 0, n_heads * head_dim), output=output)


def _function(
    b: GraphBuilder, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str] = ()
) -> Any:
    """What was built, as a function; its constants are nodes, as functions have no initializers."""
    from onnx import helper

    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in b.inline]
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_function(MICROSOFT, name, inputs, outputs, [*constants, *b.nodes], opsets, attributes)
