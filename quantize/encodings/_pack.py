"""Puts levels into the bytes of a record, for `LANES` blocks side by side.

Shapes: levels [256, LANES] or [32, LANES], records [bytes, LANES]; `at` is the first byte written.
"""

from __future__ import annotations

import numpy as np

from ._jit import LANES, Lanes, Records, kernel

_NIBBLE, _PAIR = np.uint8(15), np.uint8(3)


@kernel
def pack_nibbles(levels: Records, at: int, records: Records) -> None:
    """Low four bits: of 64 elements, the first 32 in the low halves of 32 bytes, the others in the high halves."""
    for part in range(4):
        for j in range(32):
            for i in range(LANES):
                low, high = levels[64 * part + j, i], levels[64 * part + 32 + j, i]
                records[at + 32 * part + j, i] = (low & _NIBBLE) | (high << np.uint8(4))


@kernel
def pack_halves(levels: Records, at: int, records: Records) -> None:
    """Low four bits of 32 levels in 16 bytes: element j in the low half of byte j, element 16 + j in the high half."""
    for j in range(16):
        for i in range(LANES):
            records[at + j, i] = (levels[j, i] & _NIBBLE) | (levels[16 + j, i] << np.uint8(4))


@kernel
def pack_fifth_bits(levels: Records, at: int, records: Records) -> None:
    """Bit 4 of 32 levels: that of element j is bit j of the little-endian word."""
    for k in range(4):
        for i in range(LANES):
            byte = np.uint8(0)
            for j in range(8):
                byte |= (levels[8 * k + j, i] >> np.uint8(4)) << np.uint8(j)
            records[at + k, i] = byte


@kernel
def pack_pairs(levels: Records, at: int, records: Records) -> None:
    """Low two bits: of 128 elements, element j + 32 k is in byte j from bit 2 k on."""
    for part in range(2):
        for j in range(32):
            for i in range(LANES):
                byte = np.uint8(0)
                for k in range(4):
                    byte |= (levels[128 * part + 32 * k + j, i] & _PAIR) << np.uint8(2 * k)
                records[at + 32 * part + j, i] = byte


@kernel
def pack_high_bits(levels: Records, bit: int, at: int, records: Records) -> None:
    """The given bit: that of element j + 32 k is bit k of byte j."""
    for j in range(32):
        for i in range(LANES):
            byte = np.uint8(0)
            for k in range(8):
                byte |= ((levels[32 * k + j, i] >> np.uint8(bit)) & np.uint8(1)) << np.uint8(k)
            records[at + j, i] = byte


@kernel
def pack_q6(levels: Records, records: Records) -> None:
    """Six bits as Q6_K has them: bytes 0-127 the low four, 128-191 the high two."""
    for part in range(2):
        for j in range(32):
            for i in range(LANES):
                first, second = levels[128 * part + j, i], levels[128 * part + 32 + j, i]
                third, fourth = levels[128 * part + 64 + j, i], levels[128 * part + 96 + j, i]
                records[64 * part + j, i] = (first & _NIBBLE) | (third << np.uint8(4))
                records[64 * part + 32 + j, i] = (second & _NIBBLE) | (fourth << np.uint8(4))
    for part in range(2):
        for j in range(32):
            for i in range(LANES):
                byte = np.uint8(0)
                for k in range(4):
                    byte |= (levels[128 * part + 32 * k + j, i] >> np.uint8(4)) << np.uint8(2 * k)
                records[128 + 32 * part + j, i] = byte


@kernel
def pack_scales_q45(values: Lanes, records: Records) -> None:
    """Six-bit scales and minima, values [2, 8, LANES], into bytes 4-15 as Q4_K and Q5_K have them."""
    for run in range(4):
        for i in range(LANES):
            scale, minimum = np.uint8(values[0, run, i]), np.uint8(values[1, run, i])
            late_scale, late_minimum = np.uint8(values[0, run + 4, i]), np.uint8(values[1, run + 4, i])
            records[4 + run, i] = scale | ((late_scale >> np.uint8(4)) << np.uint8(6))
            records[8 + run, i] = minimum | ((late_minimum >> np.uint8(4)) << np.uint8(6))
            records[12 + run, i] = (late_scale & _NIBBLE) | (late_minimum << np.uint8(4))


@kernel
def pack_scales_q3(scales: Lanes, records: Records) -> None:
    """Six-bit scales -32 … 31 [16, LANES] into bytes 96-107 as Q3_K has them."""
    for run in range(8):
        for i in range(LANES):
            low, high = np.uint8(scales[run, i] + 32), np.uint8(scales[run + 8, i] + 32)
            records[96 + run, i] = (low & _NIBBLE) | (high << np.uint8(4))
    for run in range(4):
        for i in range(LANES):
            byte = np.uint8(0)
            for k in range(4):
                byte |= (np.uint8(scales[run + 4 * k, i] + 32) >> np.uint8(4)) << np.uint8(2 * k)
            records[104 + run, i] = byte


@kernel
def pack_scales_iq4(scales: Lanes, records: Records) -> None:
    """Six-bit scales -32 … 31 [8, LANES] into bytes 2-7 as IQ4_XS has them."""
    records[2:8] = np.uint8(0)
    for run in range(8):
        for i in range(LANES):
            byte = np.uint8(np.int32(scales[run, i]) + np.int32(32))
            records[2 + run // 4, i] |= (byte >> np.uint8(4)) << np.uint8(2 * (run % 4))
            records[4 + run // 2, i] |= (byte & _NIBBLE) << np.uint8(4 * (run % 2))
