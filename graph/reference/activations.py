"""Activation functions, in place where the argument is not needed any more."""

from __future__ import annotations

import numpy as np

from ..dtypes import Float32
from .cores import by_rows, each


def sigmoid(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the inverse of that the right zero
        return np.reciprocal(1 + np.exp(-x), dtype=np.float32)


def gated_silu(gate: Float32, up: Float32) -> Float32:
    """silu(gate) * up, in place of the gate."""

    def multiply(low: int, high: int) -> None:
        piece = gate[low:high]
        with np.errstate(over="ignore"):  # as above
            scale = np.exp(-piece)
        scale += 1
        np.divide(piece, scale, out=piece)
        piece *= up[low:high]

    each(multiply, by_rows(gate))
    return gate
