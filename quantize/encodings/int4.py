"""4-bit integers in blocks of 32 with an integer zero point, as ONNX MatMulNBits stores them.

| part        | row of K elements              | content                                           |
|-------------|--------------------------------|---------------------------------------------------|
| values      | uint8 [K/32, 16]               | code 2i in the low nibble of byte i, 2i+1 in the high |
| scales      | float32 or float16 [K/32]      | one a block                                       |
| zero_points | uint8 [ceil(K/64)]             | block 2i in the low nibble of byte i              |

value = (code - zero_point) * scale.
Source: ONNX Runtime contrib operators, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...convert.model.dtypes import Float32
from ..encoding import Bytes, Encoding, Part

_LEVELS = np.float32(15)


class Int4Block32(Encoding):
    """Zero point from the block's range, scale refitted to the codes by least squares.

    The scale is rounded to its stored width before the final codes are chosen, so that they are the
    nearest ones on the grid a runtime will decode.
    """

    block = 32
    class_name = "q4"

    def __init__(self, name: str, scale_dtype: str) -> None:
        self.name = name
        self.scale_dtype: np.dtype[Any] = np.dtype(scale_dtype)

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        n_blocks = n_cols // self.block
        return (
            Part("values", np.dtype("u1"), (n_blocks, self.block // 2)),
            Part("scales", self.scale_dtype, (n_blocks,)),
            Part("zero_points", np.dtype("u1"), ((n_blocks + 1) // 2,)),
        )

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        n, n_cols = rows.shape
        blocks = rows.reshape(n, n_cols // self.block, self.block)
        low = np.minimum(blocks.min(axis=-1, keepdims=True), 0)
        high = np.maximum(blocks.max(axis=-1, keepdims=True), 0)
        first = (high - low) / _LEVELS
        zero = np.rint(-low * _inverse(first))
        codes = _codes(blocks, first, zero)
        with np.errstate(over="ignore"):
            scales = _refit(blocks, codes - zero, first).astype(self.scale_dtype)
        codes = _codes(blocks, scales.astype(np.float32), zero)
        return (_pack(codes.astype(np.uint8)), scales[..., 0], _pack(_even(zero[..., 0].astype(np.uint8))))

    def decode(self, *parts: Bytes) -> Float32:
        values, scales, zero_points = parts
        n, n_blocks = scales.shape
        zero = _unpack(zero_points)[:, :n_blocks].astype(np.float32)
        codes = _unpack(values).astype(np.float32)
        decoded: Float32 = (codes - zero[..., None]) * scales.astype(np.float32)[..., None]
        return decoded.reshape(n, n_blocks * self.block)


def _inverse(scales: Float32) -> Float32:
    """1 / scale; 0 for a block of zeros, and for one so small that the reciprocal overflows."""
    tiny = np.float32(1e-38)
    return np.where(scales > tiny, 1 / np.maximum(scales, tiny), 0).astype(np.float32)


def _codes(blocks: Float32, scales: Float32, zero: Float32) -> Float32:
    codes = blocks * _inverse(scales)
    np.rint(codes, out=codes)
    codes += zero
    return np.clip(codes, 0, _LEVELS, out=codes)


def _refit(blocks: Float32, steps: Float32, first: Float32) -> Float32:
    """The scale that minimises the squared error for given codes; `first` where all codes are zero."""
    dot = np.einsum("nbi,nbi->nb", blocks, steps)[..., None]
    norm = np.einsum("nbi,nbi->nb", steps, steps)[..., None]
    fitted: Float32 = np.where(norm > 0, dot / np.maximum(norm, 1), first)
    return fitted


def _even(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(codes, ((0, 0), (0, 1))) if codes.shape[1] % 2 else codes


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two nibbles a byte along the last axis, the even element low."""
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4), np.uint8)


def _unpack(packed: Bytes) -> NDArray[np.uint8]:
    pairs: NDArray[np.uint8] = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


ENCODINGS: tuple[Encoding, ...] = (
    Int4Block32("int4_block32_f32", "<f4"),
    Int4Block32("int4_block32_f16", "<f2"),
)
