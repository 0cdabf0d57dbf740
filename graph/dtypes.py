"""The number formats of a checkpoint, and their exact conversions through float32."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class DType(enum.Enum):
    """Dtype names as the safetensors header spells them. Source: safetensors 0.8, `tensor.rs`."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    C64 = "C64"
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
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    F4 = "F4"

    @property
    def bits(self) -> int:
        """Bits of one element; those of less than a byte are packed without gaps."""
        return _BITS_OF.get(self, 8)

    @property
    def itemsize(self) -> int:
        """Bytes of one element, for dtypes of whole bytes."""
        return self.bits // 8

    @property
    def is_coded(self) -> bool:
        """Whether only a quantizer writes it: a float of a byte or less, which needs scales beside it."""
        return self.value.startswith(("F8_", "F6_", "F4"))


_BITS_OF = {
    DType.F64: 64, DType.I64: 64, DType.U64: 64, DType.C64: 64,
    DType.F32: 32, DType.I32: 32, DType.U32: 32,
    DType.F16: 16, DType.BF16: 16, DType.I16: 16, DType.U16: 16,
    DType.F6_E2M3: 6, DType.F6_E3M2: 6, DType.F4: 4,
}  # fmt: skip

# What a weight may be stored in: each widens to float32 without loss.
WEIGHT_DTYPES = (DType.F32, DType.F16, DType.BF16)
# The same by the names of torch, as configs spell them.
TORCH_NAMES: Mapping[str, DType] = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16}

# Same width unsigned view, and the bits that are all set in NaN and infinity.
_BITS: dict[DType, tuple[np.dtype[np.unsignedinteger[Any]], int]] = {
    DType.F32: (np.dtype("<u4"), 0x7F80_0000),
    DType.F16: (np.dtype("<u2"), 0x7C00),
    DType.BF16: (np.dtype("<u2"), 0x7F80),
}


# What elements are in memory as they lie in a file: integers as such, any other type as the bits of its width.
_INTEGERS = {DType.I64: "<i8", DType.I32: "<i4", DType.I16: "<i2", DType.I8: "|i1", DType.BOOL: "|u1"}


def element_type(dtype: DType) -> np.dtype[Any]:
    """The numpy type of stored elements, of dtypes of whole bytes, before they are decoded."""
    return np.dtype(_INTEGERS.get(dtype, f"<u{dtype.itemsize}"))


def stored(raw: memoryview, dtype: DType) -> NDArray[np.unsignedinteger[Any]]:
    """The elements of `raw` as unsigned integers of their own width, little-endian, no copy."""
    return np.frombuffer(raw, dtype=_BITS[dtype][0])


def first_not_finite(bits: NDArray[np.unsignedinteger[Any]], dtype: DType) -> int | None:
    """Flat index of the first NaN or infinity in stored elements, or None."""
    sign, exponent = 1 << (8 * bits.itemsize - 1), _BITS[dtype][1]
    # NaN and infinity are the largest positive numbers, and as unsigned integers the largest negative ones
    if not bits.size or (bits.view(f"<i{bits.itemsize}").max() < exponent and bits.max() < sign + exponent):
        return None
    return int(((bits & bits.dtype.type(sign - 1)) >= exponent).argmax())


def widen(bits: NDArray[np.unsignedinteger[Any]], dtype: DType, *, out: Float32 | None = None) -> Float32:
    """Stored elements as float32, exactly, in `out` or a new array of the same size."""
    out = np.empty(bits.shape, np.float32) if out is None else out
    if dtype is DType.BF16:
        wide = out.view(np.uint32)
        np.copyto(wide, bits)
        wide <<= 16
    else:
        out[...] = bits.view("<f2" if dtype is DType.F16 else "<f4")
    return out


def to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even. Values must be finite (NaN is not handled)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype(np.uint16)
