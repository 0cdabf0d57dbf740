"""GGUF IQ4_NL: 32 elements in 18 bytes, 4.5 bits each; levels are denser near zero.

| bytes | type | meaning |
|---|---|---|
| 0-1 | float16 | d, the scale |
| 2-17 | uint8[16] | indices 0-15: element j in the low half of byte j, element 16 + j in the high half |

value = d * table[index]. Source: llama.cpp `ggml-quants.c`, `quantize_row_iq4_nl_impl`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import DType, Float32
from ..committed import Committed
from ..encoding import Bytes, Encoding
from ._blocks import BlockEncoding, Levels, Records, column, pack_nibbles, unpack_nibbles
from ._tables import IQ4


class IQ4_NL(BlockEncoding):
    """Four bits by a table."""

    name = "IQ4_NL"
    class_name = "q4"
    ggml_type = 20
    block = 32
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    module = "_kernels_iq4"
    searches = True
    table = np.array(IQ4, np.float32)

    @property
    def refits(self) -> DType | None:
        return DType.F16

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        (stored,) = super().recoded(parts, found)
        self._stored_records(stored)["d"] = found.scales.reshape(-1)
        return (stored,)

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        return column(records["d"]), None


ENCODINGS: tuple[Encoding, ...] = (IQ4_NL(),)
