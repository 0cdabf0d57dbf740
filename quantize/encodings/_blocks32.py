"""The arithmetic of ggml's 32-element formats: a scale, perhaps a minimum, and unsigned levels.

| kind | stored | level | value |
|---|---|---|---|
| signed (Q4_0, Q5_0) | d = extreme / -n | trunc(x / d + n + 0.5) | d * (level - n) |
| ranged (Q4_1, Q5_1) | d = (max - min) / (2n - 1), m = min | trunc((x - m) / d + 0.5) | d * level + m |

with n = 8 (4 bits) or 16 (5 bits); the extreme is the element farthest from zero, the first of equals.
Encoding works on columns, one a block: numpy is several times faster along long rows than along 32 elements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...convert.model.dtypes import Float32
from ._blocks import Levels, to_half

Half = NDArray[np.float16]


def signed_levels(blocks: Float32, n: int) -> tuple[Half, Levels]:
    """Scales [blocks] and levels [32, blocks] in 0 … 2n - 1 around n."""
    x = blocks.T.copy()
    low, high = x.min(axis=0), x.max(axis=0)
    extreme = np.where(high > -low, high, low)
    tied = np.flatnonzero(high == -low)
    if tied.size:
        rows = blocks[tied]
        extreme[tied] = rows[np.arange(tied.size), np.abs(rows).argmax(axis=1)]
        extreme += np.float32(0)  # C starts from +0, so that a block of -0.0 has the scale of one of +0.0
    scale = extreme / np.float32(-n)
    half = to_half(scale)
    return half, _levels(x, scale, n, offset=n + 0.5)


def ranged_levels(blocks: Float32, n: int) -> tuple[Half, Half, Levels]:
    """Scales [blocks], minima [blocks] and levels [32, blocks] in 0 … 2n - 1."""
    x = blocks.T.copy()
    low, high = x.min(axis=0), x.max(axis=0)
    zero = np.flatnonzero(low == 0)
    if zero.size:  # of +0.0 and -0.0 the first is the minimum, and their difference is +0.0
        rows = blocks[zero]
        low[zero] = rows[np.arange(zero.size), rows.argmin(axis=1)]
        high[zero] += np.float32(0)
    scale = (high - low) / np.float32(2 * n - 1)
    half = to_half(scale)
    x -= low
    return half, to_half(low), _levels(x, scale, n, offset=0.5)


def _levels(x: Float32, scale: Float32, n: int, *, offset: float) -> Levels:
    """trunc(x / scale + offset) up to 2n - 1; overwrites x."""
    divide(x, scale, offset=offset)
    levels = x.astype(np.uint8)
    return np.minimum(levels, np.uint8(2 * n - 1), out=levels)


def divide(x: Float32, scale: Float32, *, offset: float = 0.0) -> None:
    """x [32, n] / scale [n] + offset in place, as C does it: times the float32 inverse, 0 for a scale of 0.

    The inverse of a subnormal scale is infinite, and C on x86 turns infinite steps into level 0: so does this.
    """
    inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    x *= inverse
    x += np.float32(offset)
    x[:, np.isinf(inverse)] = 0


def pack_nibbles(levels: Levels) -> Levels:
    """Low four bits of [32, n] as bytes [n, 16]: element j in the low half of byte j, element 16 + j in the high."""
    packed: Levels = (levels[:16] & np.uint8(15)) | (levels[16:] << np.uint8(4))
    return packed.T


def unpack_nibbles(packed: Levels) -> Levels:
    """Levels [n, 32] of bytes [n, 16]."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def pack_fifth_bits(levels: Levels) -> Levels:
    """Bit 4 of [32, n] as bytes [n, 4]: element j is bit j of the little-endian word."""
    return np.packbits(levels & np.uint8(16), axis=0, bitorder="little").T


def unpack_fifth_bits(packed: Levels) -> Levels:
    """Bit 4 of levels [n, 32], 0 or 16 each, of bytes [n, 4]."""
    bits: Levels = np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)
    return bits
