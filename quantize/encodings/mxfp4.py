"""GGUF MXFP4: 32 elements in 17 bytes, 4.25 bits each; 4-bit floats with a power of two in common.

| bytes | type | meaning |
|---|---|---|
| 0 | uint8 | e: the scale is 2^(e - 127) |
| 1-16 | uint8[16] | E2M1 codes: element j in the low half of byte j, element 16 + j in the high half |

The power is floor(log2(largest magnitude)) - 2; of two codes as near the smaller is taken, zero without a sign.
value = 2^(e - 127) * code's value. Source: OCP Microscaling Formats (MX) 1.0; llama.cpp `ggml-quants.c`,
`quantize_row_mxfp4_ref`.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, pack_nibbles, unpack_nibbles
from ._tables import E2M1


class MXFP4(BlockEncoding):
    """Four-bit floats."""

    name = "MXFP4"
    class_name = "q4"
    ggml_type = 39
    weighs_columns = False
    block = 32
    layout = np.dtype([("e", "u1"), ("qs", "u1", 16)])
    module = "_kernels_iq4"
    halves = ()
    table = np.array([*E2M1, *(-value for value in E2M1)], np.float32)

    def _levels(self, records: Records) -> Levels:
        return unpack_nibbles(records["qs"])

    def _set_levels(self, records: Records, levels: Levels) -> None:
        records["qs"] = pack_nibbles(levels)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        # The table is of twice the values, so that the power is one less; ldexp rounds a subnormal scale as C has it.
        halved = np.ldexp(np.float32(1), records["e"].astype(np.int32) - 128).astype(np.float32)
        return halved[:, None], None


ENCODINGS: tuple[Encoding, ...] = (MXFP4(),)
