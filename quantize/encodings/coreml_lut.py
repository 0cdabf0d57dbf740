"""Indices into tables of 16 values, as Core ML's `constexpr_lut_to_dense` looks them up, to float16.

| encoding    | indices, row of K elements                  | lut                                              |
|-------------|---------------------------------------------|--------------------------------------------------|
| coreml_pal4 | uint8 [K/2], even element in the low nibble | float16 [1], an entry of the table of 16 rows    |

16 rows share a table, of which each row holds one entry: together they are the table, in ascending order. Rows come in
multiples of 16.
Source: coremltools `mil/ops/defs/iOS18/compression.py`; groups of channels as `OpPalettizerConfig` makes them.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import needs_extra
from ..encoding import Bytes, Encoding, Part

LEVELS = ROWS = 16


class Palette4(Encoding):
    """The table that k-means leaves the least squared error with, of those it was begun with."""

    name = "coreml_pal4"
    class_name = "q4"
    block = 2
    tile_rows = ROWS

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return Part("indices", np.dtype("u1"), (n_cols // 2,)), Part("lut", np.dtype("<f2"), (1,))

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`. Raises BackendError if numba, which compiles the search, is not installed."""
        with needs_extra("coreml", f"encoding {self.name}"):
            from ._int_fit import nibbles
            from ._lut_fit import nearest, tables

        groups = np.ascontiguousarray(rows).reshape(len(rows) // ROWS, -1)
        with np.errstate(over="ignore"):  # a value beyond the type is infinity, which the writer refuses
            lut = tables(np.sort(groups, axis=1), LEVELS).astype("<f2")
        indices = nearest(groups, lut.astype(np.float32))
        return nibbles(indices).reshape(len(rows), -1), lut.reshape(-1, 1)

    def decode(self, *parts: Bytes) -> Float32:
        indices, lut = parts
        pairs = np.stack([indices & 15, indices >> 4], axis=-1).reshape(len(lut) // ROWS, -1)
        table = lut.astype(np.float32).reshape(-1, LEVELS)
        return np.take_along_axis(table, pairs.astype(np.intp), axis=1).reshape(len(lut), -1)


ENCODINGS: tuple[Encoding, ...] = (Palette4(),)
