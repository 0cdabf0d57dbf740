"""Codes of a few bits out of the words and bytes that they are packed in, and the values that small floats stand for.

Codes are packed densely from the lowest bit on: code i takes the bits [i * bits, (i + 1) * bits) of the row. Words are
little-endian, so that a row of words is a row of bytes in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...dtypes import DType, Float32

Bytes = NDArray[np.uint8]


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The first codes of each row. Shapes: `packed` [n, bytes] to [n, count]; `bits` is 1 to 8."""
    if bits == 8:
        return packed[:, :count]
    if 8 % bits == 0:
        parts = np.empty((*packed.shape, 8 // bits), np.uint8)
        for part in range(8 // bits):
            np.bitwise_and(packed >> (part * bits), (1 << bits) - 1, out=parts[..., part])
        return parts.reshape(len(packed), -1)[:, :count]
    first = np.arange(count) * bits
    wide = np.zeros((len(packed), packed.shape[1] + 1), np.uint16)  # a code may end in the byte after
    wide[:, :-1] = packed
    pairs = wide[:, :-1] | (wide[:, 1:] << 8)
    return ((pairs[:, first >> 3] >> (first & 7).astype(np.uint16)) & ((1 << bits) - 1)).astype(np.uint8)


def as_bytes(words: NDArray[np.int32]) -> Bytes:
    """Words [n, m] as the bytes that they are stored as, [n, 4 * m]."""
    return np.ascontiguousarray(words, "<i4").view(np.uint8)


@cache
def float_values(kind: str) -> Float32:
    """What each code of a small float stands for, NaN and infinity included.

    Source: OCP Microscaling Formats 1.0 (E2M1, E2M3, E8M0); OCP 8-bit Floating Point 1.0 (E4M3, E5M2).
    """
    return _KINDS[kind]()


def _minifloat(exponent_bits: int, mantissa_bits: int) -> Float32:
    """Values of sign, exponent and mantissa, all finite; exponent 0 holds the subnormals."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    whole = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    values = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes >> (exponent_bits + mantissa_bits), -values, values).astype(np.float32)


def _e4m3() -> Float32:
    values = _minifloat(4, 3)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> Float32:
    values = _minifloat(5, 2)
    values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
    return values


def _e8m0() -> Float32:
    """Powers of two, 2^-127 to 2^127; the last code is none."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)


_KINDS: dict[str, Callable[[], Float32]] = {
    "e2m1": lambda: _minifloat(2, 1),
    "e2m3": lambda: _minifloat(2, 3),
    "e4m3": _e4m3,
    "e5m2": _e5m2,
    "e8m0": _e8m0,
}
# What a tensor of a small float holds, by its type; a byte that is a scale is a power of two.
KIND_OF = {DType.F8_E4M3: "e4m3", DType.F8_E5M2: "e5m2", DType.F8_E8M0: "e8m0", DType.U8: "e8m0"}
