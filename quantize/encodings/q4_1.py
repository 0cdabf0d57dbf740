"""GGUF Q4_1: 32 elements in 20 bytes, 5 bits each; asymmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: (max - min) / 15 |
| 2-3 | float16 | m, the minimum |
| 4-19 | uint8[16] | levels 0-15: element j in the low half of byte j, element 16 + j in the high half |

value = d * level + m. Source: llama.cpp `ggml-quants.c`, `quantize_row_q4_1_ref`.
"""

from __future__ import annotations

import numpy as np

from ..encoding import Encoding
from ._blocks import GridBlock, Levels, Records, pack_nibbles, unpack_nibbles


class Q4_1(GridBlock):
    """Four bits above a minimum."""

    name = "Q4_1"
    class_name = "q4"
    ggml_type = 3
    block = 32
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
    module = "_kernels_32"
    level_bits = 4
    halves = ("d", "m")

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)


ENCODINGS: tuple[Encoding, ...] = (Q4_1(),)
