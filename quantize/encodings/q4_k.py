"""GGUF Q4_K: 256 elements in 144 bytes, 4.5 bits each; asymmetric, with a scale and a minimum per 32 elements.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the unit of scales |
| 2-3 | float16 | dmin, the unit of minima |
| 4-15 | uint8[12] | six-bit scales and minima of eight runs of 32 |
| 16-143 | uint8[4][32] | levels 0-15: of 64 elements, the first 32 in the low halves, the others in the high halves |

Scales of runs 0-3 are the low six bits of bytes 4-7, minima of runs 0-3 those of bytes 8-11. Of runs 4-7 the low
four bits are in bytes 12-15, of the scale in the low half and of the minimum in the high half, and the high two
bits are the top bits of bytes 4-7 and 8-11.
value = d * scale * level - dmin * minimum.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q4_K_ref`, `quantize_row_q4_K_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column, pack_halves, unpack_halves, unpack_sixes


class Q4_K(BlockEncoding):
    """Four bits above minima."""

    name = "Q4_K"
    class_name = "q4"
    ggml_type = 12
    block = 256
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", (4, 32))])
    module = "_kernels_k"
    searches = True
    halves = ("d", "dmin")

    def _levels(self, records: Records) -> Levels:
        return unpack_halves(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_halves(levels)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        scales, minima = unpack_sixes(records["scales"])
        return scales * column(records["d"]), -(minima * column(records["dmin"]))


ENCODINGS: tuple[Encoding, ...] = (Q4_K(),)
