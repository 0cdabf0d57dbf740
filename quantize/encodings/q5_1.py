"""GGUF Q5_1: 32 elements in 24 bytes, 6 bits each; asymmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: (max - min) / 31 |
| 2-3 | float16 | m, the minimum |
| 4-7 | uint32 | bit j is bit 4 of element j's level |
| 8-23 | uint8[16] | bits 0-3 of the levels: element j in the low half of byte j, element 16 + j in the high half |

value = d * level + m, level 0-31. Source: llama.cpp `ggml-quants.c`, `quantize_row_q5_1_ref`.
"""

from __future__ import annotations

import numpy as np

from ..encoding import Encoding
from ._blocks import GridBlock, Levels, Records, pack_fifth_bits, pack_nibbles, unpack_fifth_bits, unpack_nibbles


class Q5_1(GridBlock):
    """Five bits above a minimum."""

    name = "Q5_1"
    class_name = "q5"
    ggml_type = 7
    block = 32
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    module = "_kernels_32"
    level_bits = 5
    halves = ("d", "m")

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"]) | unpack_fifth_bits(records["qh"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)
        records["qh"] = pack_fifth_bits(levels)


ENCODINGS: tuple[Encoding, ...] = (Q5_1(),)
