"""The element types of MIL: how a package stores them, and what the evaluator holds their values as.

Floats of every width are held in float32; whether a 16-bit one is rounded is the evaluator's precision. Integers are held
in the smallest type of numpy that has their range.
Source: coremltools 9.0 `proto/MIL_pb2.py` (DataType); the numbers of weight.bin are those its own writer puts there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOAT16 = "fp16"


@dataclass(frozen=True)
class ElementType:
    """One element type. `held` is numpy's type of its values; `stored` that of whole bytes in a file.

    `in_spec` and `in_blob` are its numbers in the protobuf and in weight.bin; `in_blob` is None of one that lies in
    the protobuf only. Units: bits.
    """

    name: str
    bits: int
    held: str
    stored: str
    in_spec: int
    in_blob: int | None = None

    @property
    def is_float(self) -> bool:
        return self.held == "<f4"

    @property
    def is_signed(self) -> bool:
        return self.held.startswith(("<i", "|i"))


_ALL = (
    ElementType("bool", 8, "|b1", "|b1", 1),
    ElementType(FLOAT16, 16, "<f4", "<f2", 10, 1),
    ElementType("fp32", 32, "<f4", "<f4", 11, 2),
    ElementType("int8", 8, "|i1", "|i1", 21, 4),
    ElementType("int16", 16, "<i2", "<i2", 22, 6),
    ElementType("int32", 32, "<i4", "<i4", 23, 14),
    ElementType("int64", 64, "<i8", "<i8", 24),
    ElementType("int4", 4, "|i1", "|u1", 25, 8),
    ElementType("uint8", 8, "|u1", "|u1", 31, 3),
    ElementType("uint16", 16, "<u2", "<u2", 32, 7),
    ElementType("uint32", 32, "<u4", "<u4", 33, 15),
    ElementType("uint4", 4, "|u1", "|u1", 35, 11),
    ElementType("uint2", 2, "|u1", "|u1", 36, 10),
    ElementType("uint1", 1, "|u1", "|u1", 37, 9),
    ElementType("uint6", 6, "|u1", "|u1", 38, 13),
    ElementType("uint3", 3, "|u1", "|u1", 39, 12),
)
BY_NAME = {each.name: each for each in _ALL}
BY_SPEC = {each.in_spec: each for each in _ALL}


def unpack(packed: NDArray[np.uint8], element: ElementType, first: int, count: int) -> NDArray[np.integer]:
    """Elements [first, first + count) of a stream of packed bits, the lowest bits of each byte first."""
    bits = element.bits
    codes: NDArray[np.uint8]
    if bits == 4:
        codes = _pairs(packed[first // 2 : (first + count + 1) // 2])
        codes = codes[first % 2 : first % 2 + count]
    else:
        start, stop = first * bits, (first + count) * bits
        stream = np.unpackbits(packed[start // 8 : -(-stop // 8)], bitorder="little")
        taken = stream[start % 8 : start % 8 + count * bits].reshape(count, bits)
        codes = taken @ (1 << np.arange(bits)).astype(np.uint8)
    if element.is_signed:
        sign = np.uint8(1 << (bits - 1))
        return ((codes ^ sign) - sign).view(np.int8)
    return codes


def _pairs(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codes = np.empty((packed.size, 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0])
    np.right_shift(packed, 4, out=codes[:, 1])
    return codes.reshape(-1)
