"""GGUF Q4_0: 32 elements in 18 bytes, 4.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: the element farthest from zero over -8 |
| 2-17 | uint8[16] | levels 0-15: element j in the low half of byte j, element 16 + j in the high half |

value = d * (level - 8). Source: llama.cpp `ggml-quants.c`, `quantize_row_q4_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ..encoding import Encoding
from ._blocks import GridBlock, Levels, Records, pack_nibbles, unpack_nibbles


class Q4_0(GridBlock):
    """Four bits around zero."""

    name = "Q4_0"
    class_name = "q4"
    ggml_type = 2
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    module = "_kernels_32"
    level_bits = 4
    zero = 8

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)


ENCODINGS: tuple[Encoding, ...] = (Q4_0(),)
