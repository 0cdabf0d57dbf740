"""GGUF Q2_K: 256 elements in 84 bytes, 2.625 bits each; asymmetric, with a scale and a minimum per 16 elements.

| bytes | type | meaning |
|---|---|---|
| 0-15 | uint8[16] | of each run of 16 the scale in the low half, the minimum in the high half |
| 16-79 | uint8[2][32] | levels 0-3: of 128 elements, j + 32k is in byte j from bit 2k on |
| 80-81 | float16 | d, the unit of scales |
| 82-83 | float16 | dmin, the unit of minima |

value = d * scale * level - dmin * minimum.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q2_K_ref`, `quantize_row_q2_K_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column, pack_pairs, unpack_pairs


class Q2_K(BlockEncoding):
    """Two bits above minima."""

    name = "Q2_K"
    class_name = "q2"
    ggml_type = 10
    block = 256
    layout = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
    module = "_kernels_k"
    searches = True
    halves = ("d", "dmin")
    run = 16
    level_bits = 2

    def _levels(self, records: Records) -> Levels:
        return unpack_pairs(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_pairs(levels)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        minima = (records["scales"] >> 4) * column(records["dmin"])
        return (records["scales"] & 15) * column(records["d"]), -minima


ENCODINGS: tuple[Encoding, ...] = (Q2_K(),)
