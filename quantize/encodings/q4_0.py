"""GGUF Q4_0: 32 elements in 18 bytes, 4.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: the element farthest from zero over -8 |
| 2-17 | uint8[16] | levels 0-15: element j in the low half of byte j, element 16 + j in the high half |

value = d * (level - 8). Source: llama.cpp `ggml-quants.c`, `quantize_row_q4_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Records, column, to_values, unpack_nibbles


class Q4_0(BlockEncoding):
    """Four bits around zero."""

    name = "Q4_0"
    class_name = "q4"
    ggml_type = 2
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    module = "_kernels_32"

    def _decode(self, records: Records) -> Float32:
        return to_values(unpack_nibbles(records["qs"]), column(records["d"]), zero=8)


ENCODINGS: tuple[Encoding, ...] = (Q4_0(),)
