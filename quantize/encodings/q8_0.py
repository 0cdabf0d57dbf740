"""GGUF Q8_0: 32 elements in 34 bytes, 8.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: largest magnitude / 127 |
| 2-33 | int8[32] | levels -127 … 127 |

value = d * level. Source: llama.cpp `ggml-quants.c`, `quantize_row_q8_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ..encoding import Encoding
from ._blocks import GridBlock, Levels, Records

_SIGN = np.uint8(128)


class Q8_0(GridBlock):
    """Eight bits around zero."""

    name = "Q8_0"
    class_name = "q8"
    ggml_type = 8
    weighs_columns = False
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
    module = "_kernels_32"
    level_bits = 8
    zero = 128
    lowest_code = 1

    def _levels(self, records: Records) -> Levels:
        return records["qs"].view(np.uint8) ^ _SIGN

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = (levels ^ _SIGN).view(np.int8)


ENCODINGS: tuple[Encoding, ...] = (Q8_0(),)
