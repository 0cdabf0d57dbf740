"""GGUF IQ4_XS: 256 elements in 136 bytes, 4.25 bits each; as IQ4_NL, with a six-bit scale per 32 elements.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the unit of scales |
| 2-3 | uint16 | bits 4-5 of the scales: those of run r from bit 2r on |
| 4-7 | uint8[4] | bits 0-3 of the scales: run 2r in the low half of byte r, run 2r + 1 in the high half |
| 8-135 | uint8[8][16] | indices 0-15 of each run: element j in the low half of byte j, 16 + j in the high half |

value = d * (scale - 32) * table[index]. Source: llama.cpp `ggml-quants.c`, `quantize_row_iq4_nl_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column, pack_nibbles, unpack_nibbles
from ._tables import IQ4


class IQ4_XS(BlockEncoding):
    """Four bits by a table, two levels of scales."""

    name = "IQ4_XS"
    class_name = "q4"
    ggml_type = 23
    block = 256
    layout = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))])
    module = "_kernels_iq4"
    searches = True
    table = np.array(IQ4, np.float32)

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"]).reshape(-1, 256)

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels.reshape(-1, 32)).reshape(-1, 8, 16)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        low = np.stack([records["scales_l"] & 15, records["scales_l"] >> 4], axis=2).reshape(-1, 8)
        high = (records["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
        return column(records["d"]) * ((low | (high << 4)).astype(np.float32) - 32), None


ENCODINGS: tuple[Encoding, ...] = (IQ4_XS(),)
