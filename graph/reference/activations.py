"""Activation functions, in place where the argument is not needed any more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..blocks import Activation
from ..dtypes import Float32
from .cores import by_rows, each


def sigmoid(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the inverse of that the right zero
        return np.reciprocal(1 + np.exp(-x), dtype=np.float32)


def softmax(x: Float32) -> Float32:
    """Over the last axis."""
    found = np.exp(x - x.max(axis=-1, keepdims=True))
    found /= found.sum(axis=-1, keepdims=True)
    return found


def gated(activation: Activation, gate: Float32, up: Float32) -> Float32:
    """activation(gate) * up, in place of the gate."""
    activate = _IN_PLACE[activation]

    def multiply(low: int, high: int) -> None:
        piece = gate[low:high]
        activate(piece)
        piece *= up[low:high]

    each(multiply, by_rows(gate))
    return gate


def _silu(x: Float32) -> None:
    with np.errstate(over="ignore"):  # as above
        scale = np.exp(-x)
    scale += 1
    np.divide(x, scale, out=x)


def _gelu_tanh(x: Float32) -> None:
    """x * (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2. Source: Hendrycks and Gimpel 2016, its approximation."""
    inner = x * x
    inner *= _CUBIC
    inner += 1
    inner *= x
    inner *= _SLOPE
    np.tanh(inner, out=inner)
    inner += 1
    inner *= np.float32(0.5)
    x *= inner


def slopes(activation: Activation, x: Float32) -> tuple[Float32, Float32]:
    """The activation and its derivative at x."""
    if activation is Activation.SILU:
        share = sigmoid(x)
        return x * share, share * (1 + x * (1 - share))
    square = x * x
    bent = np.tanh(_SLOPE * x * (1 + _CUBIC * square))
    half = np.float32(0.5) * (1 + bent)
    return x * half, half + np.float32(0.5) * x * (1 - bent * bent) * _SLOPE * (1 + 3 * _CUBIC * square)


_SLOPE, _CUBIC = np.float32((2 / np.pi) ** 0.5), np.float32(0.044715)
_IN_PLACE: dict[Activation, Callable[[Float32], None]] = {Activation.SILU: _silu, Activation.GELU_TANH: _gelu_tanh}
