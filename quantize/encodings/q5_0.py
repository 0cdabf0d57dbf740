"""GGUF Q5_0: 32 elements in 22 bytes, 5.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: the element farthest from zero over -16 |
| 2-5 | uint32 | bit j is bit 4 of element j's level |
| 6-21 | uint8[16] | bits 0-3 of the levels: element j in the low half of byte j, element 16 + j in the high half |

value = d * (level - 16), level 0-31. Source: llama.cpp `ggml-quants.c`, `quantize_row_q5_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ..encoding import Encoding
from ._blocks import GridBlock, Levels, Records, pack_fifth_bits, pack_nibbles, unpack_fifth_bits, unpack_nibbles


class Q5_0(GridBlock):
    """Five bits around zero."""

    name = "Q5_0"
    class_name = "q5"
    ggml_type = 6
    block = 32
    layout = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    module = "_kernels_32"
    level_bits = 5
    zero = 16

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"]) | unpack_fifth_bits(records["qh"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)
        records["qh"] = pack_fifth_bits(levels)


ENCODINGS: tuple[Encoding, ...] = (Q5_0(),)
