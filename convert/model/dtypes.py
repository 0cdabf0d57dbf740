"""The number formats of a checkpoint, and their exact conversions through float32."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class DType(enum.Enum):
    """Dtype names as the safetensors header spells them. Source: safetensors format specification."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self]


_ITEMSIZE = {
    DType.F64: 8, DType.I64: 8, DType.U64: 8,
    DType.F32: 4, DType.I32: 4, DType.U32: 4,
    DType.F16: 2, DType.BF16: 2, DType.I16: 2, DType.U16: 2,
    DType.I8: 1, DType.U8: 1, DType.BOOL: 1, DType.F8_E4M3: 1, DType.F8_E5M2: 1,
}  # fmt: skip

# What a weight may be stored in: each widens to float32 without loss.
WEIGHT_DTYPES = (DType.F32, DType.F16, DType.BF16)

# Same width unsigned view, and the bits that are all set in NaN and infinity.
_BITS: dict[DType, tuple[np.dtype[np.unsignedinteger[Any]], int]] = {
    DType.F32: (np.dtype("<u4"), 0x7F80_0000),
    DType.F16: (np.dtype("<u2"), 0x7C00),
    DType.BF16: (np.dtype("<u2"), 0x7F80),
}


def stored(raw: memoryview, dtype: DType) -> NDArray[np.unsignedinteger[Any]]:
    """The elements of `raw` as unsigned integers of their own width, little-endian, no copy."""
    return np.frombuffer(raw, dtype=_BITS[dtype][0])


def first_not_finite(bits: NDArray[np.unsignedinteger[Any]], dtype: DType) -> int | None:
    """Flat index of the first NaN or infinity in stored elements, or None."""
    exponent = bits.dtype.type(_BITS[dtype][1])
    magnitude = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    if not bits.size or magnitude.max() < exponent:
        return None
    return int((magnitude >= exponent).argmax())


def widen(bits: NDArray[np.unsignedinteger[Any]], dtype: DType) -> Float32:
    """Stored elements as float32, exactly; always a new array."""
    if dtype is DType.BF16:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype is DType.F16:
        return bits.view("<f2").astype(np.float32)
    return bits.view("<f4").astype(np.float32)


def to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even. Values must be finite (NaN is not handled)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype(np.uint16)
