"""Operators younger than the oldest runtime we serve, each with the function that such a runtime runs instead.

A graph may define a function under the name of an operator. A runtime that knows the operator takes its own kernel,
one that does not takes the function's nodes: one file is as fast as each runtime can be, and none refuses it.
Source: ONNX IR, model-local functions; ONNX Runtime contrib operators, com.microsoft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...convert.model.config import ModelConfig, Operator
from .builder import MICROSOFT, OPSETS, GraphBuilder

_CONV = "CausalConvWithState"  # from ONNX Runtime 1.25.1 on
_NORM = "BranchwiseRMSNorm"  # from ONNX Runtime 1.31 on


def causal_conv(b: GraphBuilder, x: str, kernel: str, config: ModelConfig, *, past: str, present: str) -> str:
    """Each channel's sum of taps times its last inputs, causal. S new inputs, H channels, K taps.

    Shapes: x and the result [B, H, S]; kernel [H, 1, K]; past and present [B, H, K].
    The operator remembers one input less than it has taps, so it gets a tap of zero before the first. In half precision
    its nodes are written out: the CPU has the operator in float32 only, and would take new inputs unrounded but past
    ones rounded, so that a prompt in chunks would not be the whole prompt.
    """
    zeros = b.constant(np.zeros((config.hidden_size, 1, 1)), b.float_dtype)
    taps = b.op("Concat", zeros, kernel, axis=2)
    if b.is_half:
        return _convolve(b, x, taps, past, config.conv_width, present=present)
    return b.ops(_CONV, x, taps, "", past, outputs=(None, present), domain=MICROSOFT)[0]


def norm_heads(b: GraphBuilder, config: ModelConfig, x: str, gains: str) -> str:
    """The root-mean-square norm of each head of queries and keys, laid side by side.

    Shapes: x and the result [B, S, n * head_dim]; gains [n, head_dim], n = n_heads + n_kv_heads.
    """
    n = config.n_heads + config.n_kv_heads
    return b.op(_NORM, x, gains, domain=MICROSOFT, num_branches=n, epsilon=config.norm_eps)


def functions(config: ModelConfig, b: GraphBuilder) -> list[Any]:
    """The functions that the graph of a model calls."""
    made = []
    if Operator.SHORT_CONV in config.operators and not b.is_half:
        made.append(_conv(config.conv_width, b.float_type))
    if Operator.ATTENTION in config.operators:
        made.append(_norm(config, b.float_type))
    return made


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


def _norm(config: ModelConfig, float_type: int) -> Any:
    """The gains are multiplied by themselves: WebGPU's norm takes one gain for all heads."""
    b, n = GraphBuilder(float_type), config.n_heads + config.n_kv_heads
    heads = b.reshape("X", 0, 0, n, config.head_dim)
    ones = b.constant(np.ones(config.head_dim), b.float_dtype)
    normed = b.op("SimplifiedLayerNormalization", heads, ones, axis=-1, epsilon=config.norm_eps, stash_type=1)
    scaled = b.op("Mul", normed, "scale")
    b.op("Reshape", scaled, b.ints(0, 0, n * config.head_dim), output="Y")
    return _function(b, _NORM, ["X", "scale"], ["Y"], attributes=["num_branches", "epsilon"])


def _function(
    b: GraphBuilder, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str] = ()
) -> Any:
    """What was built, as a function; its constants are nodes, as functions have no initializers."""
    from onnx import helper

    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in b.inline]
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_function(MICROSOFT, name, inputs, outputs, [*constants, *b.nodes], opsets, attributes)
