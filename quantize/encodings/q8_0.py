"""GGUF Q8_0: 32 elements in 34 bytes, 8.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: largest magnitude / 127 |
| 2-33 | int8[32] | levels -127 … 127 |

value = d * level. Source: llama.cpp `ggml-quants.c`, `quantize_row_q8_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Records, column, to_values


class Q8_0(BlockEncoding):
    """Eight bits around zero."""

    name = "Q8_0"
    class_name = "q8"
    ggml_type = 8
    weighs_columns = False
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
    module = "_kernels_32"

    def _decode(self, records: Records) -> Float32:
        return to_values(records["qs"], column(records["d"]))


ENCODINGS: tuple[Encoding, ...] = (Q8_0(),)
