"""GGUF Q5_K: 256 elements in 176 bytes, 5.5 bits each; asymmetric, with a scale and a minimum per 32 elements.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the unit of scales |
| 2-3 | float16 | dmin, the unit of minima |
| 4-15 | uint8[12] | six-bit scales and minima of eight runs of 32, as Q4_K has them |
| 16-47 | uint8[32] | bit 4 of the levels: that of element j + 32k is bit k of byte j |
| 48-175 | uint8[4][32] | bits 0-3: of 64 elements, the first 32 in the low halves, the others in the high halves |

value = d * scale * level - dmin * minimum, level 0-31.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q5_K_ref`, `quantize_row_q5_K_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import (
    BlockEncoding,
    Levels,
    Records,
    column,
    pack_halves,
    pack_high_bits,
    unpack_halves,
    unpack_high_bits,
    unpack_sixes,
)


class Q5_K(BlockEncoding):
    """Five bits above minima."""

    name = "Q5_K"
    class_name = "q5"
    ggml_type = 13
    block = 256
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", (4, 32))])
    module = "_kernels_k"
    searches = True
    halves = ("d", "dmin")
    level_bits = 5

    def _levels(self, records: Records) -> Levels:
        return unpack_halves(records["qs"]) | (unpack_high_bits(records["qh"]) << np.uint8(4))

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"], records["qh"] = pack_halves(levels), pack_high_bits(levels >> np.uint8(4))

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        scales, minima = unpack_sixes(records["scales"])
        return scales * column(records["d"]), -(minima * column(records["dmin"]))


ENCODINGS: tuple[Encoding, ...] = (Q5_K(),)
