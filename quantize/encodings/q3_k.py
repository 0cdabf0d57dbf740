"""GGUF Q3_K: 256 elements in 110 bytes, 3.4375 bits each; symmetric, with a scale per 16 elements.

| bytes | type | meaning |
|---|---|---|
| 0-31 | uint8[32] | bit 2 of the levels: that of element j + 32k is bit k of byte j |
| 32-95 | uint8[2][32] | bits 0-1: of 128 elements, j + 32k is in byte j from bit 2k on |
| 96-107 | uint8[12] | six-bit scales of 16 runs of 16 |
| 108-109 | float16 | d, the unit of scales |

Scales r and r + 8 have their low four bits in the low and high half of byte 96 + r; the high two bits of scale
r + 4k (r < 4) are in byte 104 + r from bit 2k on.
value = d * (scale - 32) * (level - 4), level 0-7.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q3_K_ref`, `quantize_row_q3_K_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column, pack_high_bits, pack_pairs, unpack_high_bits, unpack_pairs


class Q3_K(BlockEncoding):
    """Three bits around zero."""

    name = "Q3_K"
    class_name = "q3"
    ggml_type = 11
    block = 256
    layout = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
    module = "_kernels_k"
    searches = True
    run = 16
    level_bits = 3
    zero = 4

    def _levels(self, records: Records) -> Levels:
        return unpack_pairs(records["qs"]) | (unpack_high_bits(records["hmask"]) << np.uint8(2))

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"], records["hmask"] = pack_pairs(levels), pack_high_bits(levels >> np.uint8(2))

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        low, high = records["scales"][:, :8], records["scales"][:, 8:]
        fours = np.concatenate([low & 15, low >> 4], axis=1)
        twos = (high[:, None] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
        scales = (fours | (twos.reshape(-1, 16) << 4)).astype(np.float32) - 32
        return column(records["d"]) * scales, None


ENCODINGS: tuple[Encoding, ...] = (Q3_K(),)
