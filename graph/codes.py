"""Codes of a few bits out of the words and bytes that they are packed in, and the values that small floats stand for.

Codes are packed densely from the lowest bit on: code i takes the bits [i * bits, (i + 1) * bits) of the row. Words are
little-endian, so that a row of words is a row of bytes in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .dtypes import DType, Float32

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
    n_octets = -(-packed.shape[1] // bits)  # eight codes fill as many bytes as one has bits
    missing = n_octets * bits - packed.shape[1]
    octets = np.pad(packed, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(packed)
    apart = np.zeros((len(packed) * n_octets, 8), np.uint8)
    apart[:, :bits] = octets.reshape(-1, bits)
    lanes = apart.view("<u8")
    for lane, width, mask in reversed(merges(bits)):
        lanes = (lanes & mask) | ((lanes & ~mask) << np.uint64(lane - width))
    return lanes.view(np.uint8).reshape(len(packed), n_octets * 8)[:, :count]


def merges(bits: int) -> list[tuple[int, int, np.uint64]]:
    """Steps that bring eight codes, each in a byte, together in the low bits of a word: lane in bits, bits used of it, and
    the lower lane of each pair as a mask.
    """
    steps = []
    for lane in (8, 16, 32):
        width = lane // 8 * bits
        mask = sum(((1 << width) - 1) << low for low in range(0, 64, 2 * lane))
        steps.append((lane, width, np.uint64(mask)))
    return steps


def as_bytes(words: NDArray[np.int32]) -> Bytes:
    """Words [n, m] as the bytes that they are stored as, [n, 4 * m]."""
    return np.ascontiguousarray(words, "<i4").view(np.uint8)


@cache
def float_values(kind: str) -> Float32:
    """What each code of a small float stands for, NaN and infinity included.

    Source: OCP Microscaling Formats 1.0 (E2M1, E2M3, E8M0); OCP 8-bit Floating Point 1.0 (E4M3, E5M2).
    """
    return _KINDS[kind]()


def minifloat(exponent_bits: int, mantissa_bits: int) -> Float32:
    """Values of all codes of sign, exponent and mantissa, all finite; exponent 0 holds the subnormals."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    whole = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    values = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes >> (exponent_bits + mantissa_bits), -values, values).astype(np.float32)


def _e4m3() -> Float32:
    values = minifloat(4, 3)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> Float32:
    values = minifloat(5, 2)
    values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
    return values


def _e8m0() -> Float32:
    """Powers of two, 2^-127 to 2^127; the last code is none."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)


_KINDS: dict[str, Callable[[], Float32]] = {
    "e2m1": lambda: minifloat(2, 1),
    "e2m3": lambda: minifloat(2, 3),
    "e4m3": _e4m3,
    "e5m2": _e5m2,
    "e8m0": _e8m0,
}
# What a tensor of a small float holds, by its type; a byte that is a scale is a power of two.
KIND_OF = {DType.F8_E4M3: "e4m3", DType.F8_E5M2: "e5m2", DType.F8_E8M0: "e8m0", DType.U8: "e8m0"}
