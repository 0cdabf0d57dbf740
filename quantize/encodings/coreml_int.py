"""Integers as Core ML's `constexpr_blockwise_shift_scale` decodes them, to float16: value = (code - offset) * scale.

| encoding    | data, row of K elements                     | scale          | offset                                     |
|-------------|---------------------------------------------|----------------|--------------------------------------------|
| coreml_int8 | uint8 [K]                                   | float16 [1]    | uint8 [1]                                  |
| coreml_int4 | uint8 [K/2], even element in the low nibble | float16 [K/32] | uint8 [K/64], even block in the low nibble |

Core ML packs 4-bit elements through the whole tensor: rows of an odd number of blocks would begin in the middle of a
byte, so that rows of coreml_int4 are multiples of 64.
Source: coremltools `mil/ops/defs/iOS18/compression.py`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import needs_extra
from ...graph.grid import GridRows
from ..committed import Committed, Tunable, integer_levels
from ..encoding import Bytes, Encoding, Part
from .int_block import IntBlock32

# Steps that the range of a row is divided into, one try each. More than there are levels clip it; where the grid falls
# between the values counts as much as its width.
_WIDTHS = np.arange(250, 264, 0.5, dtype=np.float32)
_NO_SHIFT = np.zeros(1, np.float32)
_TOP = np.float32(255)
# The search loads so many elements of a row at a time.
_AT_ONCE = 16


class RowInt8(Tunable):
    """8-bit codes with one scale and one offset a row, searched as those of `int_block` are."""

    name = "coreml_int8"
    class_name = "q8"

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        byte = np.dtype("u1")
        return Part("data", byte, (n_cols,)), Part("scale", np.dtype("<f2"), (1,)), Part("offset", byte, (1,))

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`. Raises BackendError if numba, which compiles the search, is not installed."""
        with needs_extra("coreml", f"encoding {self.name}"):
            from ._int_fit import codes, fit

        rows = np.ascontiguousarray(rows)
        filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _AT_ONCE)))  # zeros cost nothing, whatever the scale
        fitted, offsets = fit(filled, np.ones((1, filled.shape[1]), np.float32), _WIDTHS, _NO_SHIFT, _TOP)
        with np.errstate(over="ignore"):  # a scale beyond the type is infinity, which the writer refuses
            scales = fitted.astype("<f2")
        data = codes(rows, scales.astype(np.float32), offsets, _TOP)
        return data, scales[:, None], offsets[:, None]

    @property
    def levels(self) -> Float32:
        return integer_levels(8)

    def committed(self, *parts: Bytes) -> Committed:
        data, scale, offset = parts
        return Committed(data, scale.astype(np.float32), zeros=offset.astype(np.float32))

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return found.codes, *parts[1:]

    def values(self, found: Committed) -> Float32:
        return _as_float16(super().values(found))

    def decode(self, *parts: Bytes) -> Float32:
        return self.values(self.committed(*parts))


class BlockInt4(IntBlock32):
    """The search of `int4_block32_f16`, parts as Core ML calls them; activations stay float16."""

    extra = "coreml"
    activation_block = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(4, "<f2", "f16")
        self.name = "coreml_int4"

    def refusal(self, n_cols: int) -> str | None:
        return f"rows of {n_cols} are not a multiple of 64, two blocks a byte of offsets" if n_cols % 64 else None

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        _, scale, offset = super().parts(n_cols)
        return (
            Part("data", np.dtype("u1"), (n_cols // 2,)),
            Part("scale", scale.dtype, scale.row_shape),
            Part("offset", offset.dtype, offset.row_shape),
        )

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        data, scale, offset = super().encode(rows, importance)
        return data.reshape(len(rows), -1), scale, offset

    def to_grid(self, *parts: Bytes) -> GridRows:
        data, scale, offset = parts
        return super().to_grid(data.reshape(*scale.shape, -1), scale, offset)

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        data, scale, offset = super()._from_grid(rows)
        return data.reshape(len(data), -1), scale, offset

    def values(self, found: Committed) -> Float32:
        return _as_float16(super().values(found))

    def decode(self, *parts: Bytes) -> Float32:
        data, scale, offset = parts
        return _as_float16(super().decode(data.reshape(len(data), scale.shape[1], -1), scale, offset))


def _as_float16(values: Float32) -> Float32:
    """Values as the operation gives them."""
    return values.astype(np.float16).astype(np.float32)


ENCODINGS: tuple[Encoding, ...] = (RowInt8(), BlockInt4())
