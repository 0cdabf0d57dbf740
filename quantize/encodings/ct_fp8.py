"""E4M3 floats of compressed-tensors, with a scale a row or one for a square of 128 rows and columns.

| part         | row of K elements, a scale a row   | squares of 128                       |
|--------------|------------------------------------|--------------------------------------|
| weight       | E4M3 [K]                           | the same                             |
| weight_scale | the checkpoint's float type [1]    | the same [K/128], one row for 128    |

value = element · scale; a scale brings the largest magnitude to 448. The last square of a matrix may have fewer rows.
Source: compressed-tensors `compressors/naive_quantized`, `quantization/lifecycle/forward_helpers.py`, `_process_block`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import DType, Float32
from ..encoding import Bytes, Encoding, Part
from ._elements import E4M3
from .ct_base import SCALE, WEIGHT, Codes, CtEncoding, Grouped, largest
from .mlx_pack import FLOATS

SQUARE = 128


def _dtypes(encoding: CtEncoding) -> dict[str, DType]:
    return {WEIGHT: DType.F8_E4M3, SCALE: DType(encoding.floats.name)}


def _codes(values: Float32) -> Codes:
    return E4M3.magnitudes(values) | np.signbit(values).astype(np.uint8) << np.uint8(7)


class ChannelFp8(Grouped):
    """A scale a row; kernels round activations to E4M3, too, a token at a time."""

    class_name = "q5"  # as the gates count: of eight bits three are mantissa
    activation_block = 0

    def __init__(self, dtype: str) -> None:
        super().__init__("ct_fp8", dtype)
        self.dtypes = _dtypes(self)

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return Part(WEIGHT, np.dtype("u1"), (n_cols,)), Part(SCALE, self.float_dtype, (1,))

    def decode(self, *parts: Bytes) -> Float32:
        codes, scales = parts
        return E4M3.table[codes] * self.floats.decode(scales)

    def _fit(self, groups: Float32) -> tuple[Codes, *tuple[Float32, ...]]:
        scales = self._scales(largest(groups), E4M3.largest)
        return _codes(self._round(groups / scales[:, None])), scales

    def _stored(self, codes: Codes, *parameters: Float32) -> tuple[Bytes, ...]:
        return codes, self._store(parameters[0])


class SquareFp8(CtEncoding):
    """A scale for 128 rows and columns; kernels round activations to E4M3, too, 128 at a time."""

    class_name = "q5"
    block = tile_rows = SQUARE
    activation_block = SQUARE

    def __init__(self, dtype: str) -> None:
        super().__init__("ct_fp8_block", dtype)
        self.dtypes = _dtypes(self)

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        scales = Part(SCALE, self.float_dtype, (n_cols // SQUARE,), n_together=SQUARE)
        return Part(WEIGHT, np.dtype("u1"), (n_cols,)), scales

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`; importance changes nothing."""
        codes = np.empty(rows.shape, np.uint8)
        scales = np.empty((-(-len(rows) // SQUARE), rows.shape[1] // SQUARE), np.float32)
        for i, start in enumerate(range(0, len(rows), SQUARE)):
            square = rows[start : start + SQUARE].reshape(-1, scales.shape[1], SQUARE)
            scales[i] = self._scales(largest(square).max(axis=0), E4M3.largest)
            codes[start : start + SQUARE] = _codes(self._round(square / scales[i][:, None])).reshape(-1, rows.shape[1])
        return codes, self._store(scales)

    def decode(self, *parts: Bytes) -> Float32:
        codes, scales = parts
        each = np.repeat(self.floats.decode(scales), SQUARE, axis=0)[: len(codes)]
        return E4M3.table[codes] * np.repeat(each, SQUARE, axis=1)


ENCODINGS: tuple[Encoding, ...] = tuple(
    encoding for dtype in FLOATS for encoding in (ChannelFp8(dtype), SquareFp8(dtype))
)
