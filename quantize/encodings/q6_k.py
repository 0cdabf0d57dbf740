"""GGUF Q6_K: 256 elements in 210 bytes, 6.5625 bits each; symmetric, with a scale per 16 elements.

| bytes | type | meaning |
|---|---|---|
| 0-127 | uint8[2][64] | ql: bits 0-3 of the levels, two halves of 128 elements |
| 128-191 | uint8[2][32] | qh: bits 4-5 of the levels, two halves of 128 elements |
| 192-207 | int8[16] | scale of each run of 16 elements, in units of d |
| 208-209 | float16 | d |

Of a half, element j + 32k (j < 32, k < 4) has its low bits in ql byte j + 32(k mod 2), in the low half for
k < 2 and the high half for others, and its high bits in qh byte j from bit 2k on.
value = d * scale * (level - 32), level 0-63.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q6_K_ref`, `make_qx_quants`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column


class Q6_K(BlockEncoding):
    """Six bits around zero, two levels of scales."""

    name = "Q6_K"
    class_name = "q6"
    ggml_type = 14
    block = 256
    layout = np.dtype([("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", 16), ("d", "<f2")])
    module = "_kernels_k"
    searches = True
    run = 16
    level_bits = 6
    zero = 32

    def _levels(self, records: Records) -> Levels:
        ql, qh = records["ql"], records["qh"]
        levels = np.empty((len(records), 2, 4, 32), np.uint8)
        low, high = levels.reshape(-1, 2, 2, 64), np.empty_like(qh)
        np.bitwise_and(ql, np.uint8(15), out=low[:, :, 0])
        np.right_shift(ql, np.uint8(4), out=low[:, :, 1])
        for quarter, (to_left, to_right) in enumerate(((4, 0), (2, 0), (0, 0), (0, 2))):
            shifted = np.left_shift(qh, np.uint8(to_left)) if to_left else np.right_shift(qh, np.uint8(to_right))
            np.bitwise_and(shifted, np.uint8(0x30), out=high)
            levels[:, :, quarter] |= high
        return levels.reshape(-1, 256)

    def _set_levels(self, records: Records, levels: Levels) -> None:
        parts = levels.reshape(-1, 2, 4, 32)
        low, high = parts & np.uint8(15), (parts >> np.uint8(4)) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        records["ql"] = (low[:, :, :2] | (low[:, :, 2:] << np.uint8(4))).reshape(-1, 2, 64)
        records["qh"] = np.bitwise_or.reduce(high, axis=2)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        return column(records["d"]) * records["scales"], None


ENCODINGS: tuple[Encoding, ...] = (Q6_K(),)
