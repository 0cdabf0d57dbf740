"""Encodes MLX's affine groups: float32 arithmetic in the order of MLX's CPU kernels.

Source: MLX `mlx/backend/cpu/quantized.cpp`, `quantize`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import LANES, ROUNDER, bits, float_of, kernel, ordered

Groups = NDArray[np.float32]
Codes = NDArray[np.uint8]

_LEAST_SCALE = np.float32(1e-7)
_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def encode_affine(groups: Groups, top: np.float32, scales: Groups, biases: Groups, codes: Codes) -> None:
    """Scale and bias [n] of groups [n, width], as they are before they are stored, and codes 0 … top by them.

    One edge of a group's range, that farther from zero, is met exactly, and zero is a code.
    """
    # a step at a time for many groups: of one alone each step would wait for the one before
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(0, len(groups), LANES):
        n_lanes = min(LANES, len(groups) - start)
        for i in range(n_lanes):
            low[i], high[i] = _least(groups[start + i]), _largest(groups[start + i])
        for i in range(n_lanes):
            low_is_edge = abs(low[i]) > abs(high[i])
            step = max((high[i] - low[i]) / top, _LEAST_SCALE)
            step = step if low_is_edge else -step
            edge = low[i] if low_is_edge else high[i]
            n_steps = np.rint(edge / step)
            is_met = n_steps != _ZERO  # otherwise the edge is nearer to zero than half a step
            scales[start + i] = edge / n_steps if is_met else step
            biases[start + i] = edge if is_met else _ZERO
        for i in range(start, start + n_lanes):
            _set_codes(groups[i], scales[i], biases[i], top, codes[i])


@kernel
def _set_codes(x: Groups, scale: np.float32, bias: np.float32, top: np.float32, codes: Codes) -> None:
    for j in range(len(x)):
        steps = ((x[j] - bias) / scale + ROUNDER) - ROUNDER
        codes[j] = np.uint8(np.int32(min(max(steps, _ZERO), top)))


# Floats are in order as integers once those below zero are turned round, and an extreme of integers is a vector
# instruction.


@kernel
def _least(x: Groups) -> np.float32:
    least = ordered(bits(x[0]))
    for j in range(len(x)):
        least = min(least, ordered(bits(x[j])))
    return float_of(ordered(least))


@kernel
def _largest(x: Groups) -> np.float32:
    largest = ordered(bits(x[0]))
    for j in range(len(x)):
        largest = max(largest, ordered(bits(x[j])))
    return float_of(ordered(largest))
