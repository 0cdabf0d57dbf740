"""Integers in blocks of 32 with an integer zero point, as ONNX MatMulNBits stores them.

| part        | row of K elements, 4 bits | row, 8 bits      | content                              |
|-------------|---------------------------|------------------|--------------------------------------|
| values      | uint8 [K/32, 16]          | uint8 [K/32, 32] | codes                                |
| scales      | float32 or float16 [K/32] | the same         | one a block                          |
| zero_points | uint8 [ceil(K/64)]        | uint8 [K/32]     | one a block, packed as the codes are |

Of 4-bit codes, number 2i is the low nibble of byte i.
value = (code - zero_point) * scale.
Source: ONNX Runtime contrib operators, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ...graph.errors import needs_extra
from ...graph.grid import Grid, GridRows
from ..encoding import Bytes, Encoding, Part
from ..grids import OnGrid
from ..importance import all_counted
from ._blocks import to_values

Codes = NDArray[np.uint8]

# Steps the range of a block is divided into, one try each: fewer than the levels stretch it a little, which moves
# values nearer to codes where there are many, and more clip its extremes, which pays where there are few.
# The first of equals is kept.
_WIDTHS = {
    4: np.arange(13.5, 19, 0.5).astype(np.float32),
    8: np.concatenate([np.arange(255, 243.5, -0.5), np.arange(255.5, 257.5, 0.5)]).astype(np.float32),
}
# Where columns count differently it pays to clip more, also at the lower end: the zero point is moved down.
_WEIGHED_WIDTHS = {4: np.arange(13, 25.5, 0.5).astype(np.float32), 8: _WIDTHS[8]}
_NO_SHIFT, _SHIFTS = np.zeros(1, np.float32), np.array([0, -1, -2], np.float32)


class IntBlock32(OnGrid):
    """Zero point and scale are searched for the lowest squared error, the scale fitted to the codes each time.

    The scale is rounded to its stored width before the final codes are chosen, so that they are the
    nearest ones on the grid a runtime will decode.
    """

    block = 32
    weighs_columns = True
    extra: ClassVar[str] = "onnx"

    def __init__(self, bits: int, scale_dtype: str, ending: str) -> None:
        self.name = f"int{bits}_block32_{ending}"
        self.class_name = f"q{bits}"
        self.bits = bits
        self.scale_dtype: np.dtype[Any] = np.dtype(scale_dtype)
        self._top = np.float32(2**bits - 1)

    @property
    def activation_block(self) -> int:
        return self.block

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        n_blocks, per_byte = n_cols // self.block, 8 // self.bits
        return (
            Part("values", np.dtype("u1"), (n_blocks, self.block // per_byte)),
            Part("scales", self.scale_dtype, (n_blocks,)),
            Part("zero_points", np.dtype("u1"), (-(-n_blocks // per_byte),)),
        )

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`. Raises BackendError if numba, which compiles the search, is not installed."""
        with needs_extra(self.extra, f"encoding {self.name}"):
            from ._int_fit import codes, fit, nibbles

        n, n_blocks = len(rows), rows.shape[1] // self.block
        blocks = np.ascontiguousarray(rows).reshape(-1, self.block)
        weights = self._weights(importance)
        if (weights == 1).all():
            fitted, zeros = fit(blocks, weights, _WIDTHS[self.bits], _NO_SHIFT, self._top)
        else:
            fitted, zeros = fit(blocks, weights, _WEIGHED_WIDTHS[self.bits], _SHIFTS, self._top)
        with np.errstate(over="ignore"):  # a scale beyond the type is infinity, which the writer refuses
            scales = fitted.astype(self.scale_dtype)
        values = codes(blocks, scales.astype(np.float32), zeros, self._top)
        zeros = self._whole_bytes(zeros.reshape(n, n_blocks))
        if self.bits == 4:
            values, zeros = nibbles(values), nibbles(zeros)
        return values.reshape(n, n_blocks, -1), scales.reshape(n, n_blocks), zeros.reshape(n, -1)

    def decode(self, *parts: Bytes) -> Float32:
        values, scales, zero_points = parts
        n, n_blocks = scales.shape
        zero = self._unpack(zero_points)[:, :n_blocks].astype(np.float32)
        decoded = to_values(self._unpack(values), scales.astype(np.float32)[..., None], zero=zero[..., None])
        return decoded.reshape(n, n_blocks * self.block)

    @property
    def grid(self) -> Grid:
        scales = DType.F16 if self.scale_dtype == np.float16 else DType.F32
        return Grid(bits=self.bits, group=self.block, scales=scales)

    def to_grid(self, *parts: Bytes) -> GridRows:
        values, scales, zero_points = parts
        n, n_blocks = scales.shape
        zeros = self._unpack(zero_points)[:, :n_blocks].astype(np.float32)
        return GridRows(self._unpack(values).reshape(n, -1), scales.astype(np.float32), zeros)

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        n, n_blocks = rows.scales.shape
        values, zeros = rows.codes, self._whole_bytes(rows.shifts.astype(np.uint8))
        if self.bits == 4:
            values, zeros = (pairs[:, 0::2] | (pairs[:, 1::2] << np.uint8(4)) for pairs in (values, zeros))
        return values.reshape(n, n_blocks, -1), rows.scales.astype(self.scale_dtype), zeros

    def _weights(self, importance: Float32 | None) -> Float32:
        """Weights [n_blocks of a row, 32] of mean one a block, so that products of them stay in range."""
        if importance is None:
            return np.ones((1, self.block), np.float32)
        weights = all_counted(importance.reshape(-1, self.block))
        return (weights / weights.mean(axis=1, keepdims=True)).astype(np.float32)

    def _whole_bytes(self, zeros: Codes) -> Codes:
        return np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // self.bits))))

    def _unpack(self, packed: Bytes) -> Codes:
        if self.bits == 8:
            return packed
        pairs: Codes = np.stack([packed & 15, packed >> 4], axis=-1)
        return pairs.reshape(*packed.shape[:-1], -1)


ENCODINGS: tuple[Encoding, ...] = (
    IntBlock32(4, "<f4", "f32"),
    IntBlock32(4, "<f2", "f16"),
    IntBlock32(8, "<f4", "f32"),
    IntBlock32(8, "<f2", "f16"),
)
