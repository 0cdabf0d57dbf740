"""Encodes compressed-tensors' symmetric integers, to the bits that torch's arithmetic in the checkpoint's type gives.

A group's scale and its quotients are each rounded to that type, then to the nearest integer, ties to even.
Source: compressed-tensors `quantization/utils/helpers.py`, `calculate_qparams`; `quantization/lifecycle/forward_helpers.py`,
`_quantize`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import bits, float_of, half, kernel, widened

Groups = NDArray[np.float32]
Codes = NDArray[np.uint8]

# What values are rounded to.
F32, BF16, F16 = 0, 1, 2

_MAGNITUDE = np.int32(0x7FFF_FFFF)
_ROUNDER = np.float32(1.5 * 2**23)  # adding it and taking it away again rounds to an integer, ties to even


@kernel
def encode_symmetric(
    groups: Groups, rounding: int, epsilon: np.float32, n_bits: int, scales: NDArray[np.float32], codes: Codes
) -> None:
    """Codes plus 2^(bits - 1) [groups, width · bits / 8] of groups [groups, width], the first element lowest in a byte,
    and scales [groups]: half a step beyond the largest magnitude over 2^(bits - 1), or epsilon for a group of zeros.
    """
    highest = np.float32((1 << (n_bits - 1)) - 1)
    of_group = np.empty(groups.shape[1], np.uint8)
    for g in range(len(groups)):
        scale = _rounded(_largest(groups[g]) / (highest + np.float32(0.5)), rounding)
        scales[g] = epsilon if scale == np.float32(0) else scale
        if rounding == BF16:  # outside the loop, which is then one of vector instructions
            _bfloat16_codes(groups[g], scales[g], highest, of_group)
        else:
            _other_codes(groups[g], scales[g], highest, rounding, of_group)
        if n_bits == 4:
            for j in range(len(of_group) // 2):
                codes[g, j] = of_group[2 * j] | (of_group[2 * j + 1] << 4)
        else:
            codes[g] = of_group


@kernel
def _largest(x: Groups) -> np.float32:
    """The largest magnitude: floats of one sign are in order as integers, whose maximum is a vector instruction."""
    largest = np.int32(0)
    for j in range(len(x)):
        largest = max(largest, np.int32(bits(x[j]) & _MAGNITUDE))
    return float_of(largest)


@kernel
def _bfloat16_codes(x: Groups, scale: np.float32, highest: np.float32, codes: Codes) -> None:
    for j in range(len(x)):
        codes[j] = _code(_bfloat16(x[j] / scale), highest)


@kernel
def _other_codes(x: Groups, scale: np.float32, highest: np.float32, rounding: int, codes: Codes) -> None:
    for j in range(len(x)):
        codes[j] = _code(_rounded(x[j] / scale, rounding), highest)


@kernel
def _code(steps: np.float32, highest: np.float32) -> np.uint8:
    inside = min(max(steps, -highest - np.float32(1)), highest)
    return np.uint8(np.int32((inside + _ROUNDER) - _ROUNDER + (highest + np.float32(1))))


@kernel
def _rounded(value: np.float32, rounding: int) -> np.float32:
    """The nearest value of a type, ties to even."""
    if rounding == BF16:
        return _bfloat16(value)
    return widened(half(value)) if rounding == F16 else value


@kernel
def _bfloat16(value: np.float32) -> np.float32:
    found = bits(value)
    return float_of(np.int32((found + np.int32(0x7FFF) + ((found >> 16) & np.int32(1))) & np.int32(-0x1_0000)))
