"""Encodes compressed-tensors' symmetric integers, to the bits that torch's arithmetic in the checkpoint's type gives.

A group's scale and its quotients are each rounded to that type, then to the nearest integer, ties to even.
Source: compressed-tensors `quantization/utils/helpers.py`, `calculate_qparams`; `quantization/lifecycle/forward_helpers.py`,
`_quantize`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import BF16, ROUNDER, bfloat16, float_of, kernel, magnitude, rounded

Groups = NDArray[np.float32]
Codes = NDArray[np.uint8]


@kernel
def encode_symmetric(
    groups: Groups, kind: int, epsilon: np.float32, n_bits: int, scales: NDArray[np.float32], codes: Codes
) -> None:
    """Codes plus 2^(bits - 1) [groups, width · bits / 8] of groups [groups, width], the first element lowest in a byte,
    and scales [groups]: half a step beyond the largest magnitude over 2^(bits - 1), or epsilon for a group of zeros.
    """
    highest = np.float32((1 << (n_bits - 1)) - 1)
    of_group = np.empty(groups.shape[1], np.uint8)
    for g in range(len(groups)):
        scale = rounded(float_of(magnitude(groups[g])) / (highest + np.float32(0.5)), kind)
        scales[g] = epsilon if scale == np.float32(0) else scale
        if kind == BF16:  # outside the loop, which is then one of vector instructions
            _bfloat16_codes(groups[g], scales[g], highest, of_group)
        else:
            _other_codes(groups[g], scales[g], highest, kind, of_group)
        if n_bits == 4:
            for j in range(len(of_group) // 2):
                codes[g, j] = of_group[2 * j] | (of_group[2 * j + 1] << 4)
        else:
            codes[g] = of_group


@kernel
def _bfloat16_codes(x: Groups, scale: np.float32, highest: np.float32, codes: Codes) -> None:
    for j in range(len(x)):
        codes[j] = _code(bfloat16(x[j] / scale), highest)


@kernel
def _other_codes(x: Groups, scale: np.float32, highest: np.float32, kind: int, codes: Codes) -> None:
    for j in range(len(x)):
        codes[j] = _code(rounded(x[j] / scale, kind), highest)


@kernel
def _code(steps: np.float32, highest: np.float32) -> np.uint8:
    inside = min(max(steps, -highest - np.float32(1)), highest)
    return np.uint8(np.int32((inside + ROUNDER) - ROUNDER + (highest + np.float32(1))))
