"""GGUF Q8_0: 32 elements in 34 bytes, 8.5 bits each; symmetric.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale: largest magnitude / 127 |
| 2-33 | int8[32] | levels -127 … 127 |

value = d * level. Source: llama.cpp `ggml-quants.c`, `quantize_row_q8_0_ref`.
"""

from __future__ import annotations

import numpy as np

from ...convert.model.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Records, column, to_half
from ._blocks32 import divide

# C's roundf (half away from zero) is truncation after adding the float below one half, with the value's sign.
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0)).view(np.uint32)
_SIGN = np.uint32(0x8000_0000)


class Q8_0(BlockEncoding):
    """Eight bits around zero."""

    name = "Q8_0"
    class_name = "q8"
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])

    def _encode(self, blocks: Float32, out: Records) -> None:
        x = blocks.T.copy()
        scale = np.abs(np.maximum(x.max(axis=0), -x.min(axis=0))) / np.float32(127)  # abs: of -0.0 too
        out["d"] = to_half(scale)
        divide(x, scale)
        x += ((x.view(np.uint32) & _SIGN) | _ALMOST_HALF).view(np.float32)
        out["qs"] = x.astype(np.int8).T

    def _decode(self, records: Records) -> Float32:
        return records["qs"].astype(np.float32) * column(records["d"])


ENCODINGS: tuple[Encoding, ...] = (Q8_0(),)
