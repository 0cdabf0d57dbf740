"""E2M1 floats of compressed-tensors in groups: NVIDIA's, with a scale for the whole matrix beside, and OCP's.

| part          | nvfp4                                     | mxfp4                              |
|---------------|-------------------------------------------|------------------------------------|
| weight_packed | uint8 [K/2], even element in the low half | the same                           |
| weight_scale  | E4M3 [K/16]                               | uint8 [K/32], a power of two: s - 127 |

value = element · scale, which in nvfp4 is divided by `weight_global_scale`, one float32 of each matrix. It is no part of
the rows: a matrix is read as a whole before the first is encoded, and an encoding is made for it.
Source: compressed-tensors `compressors/nvfp4`, `compressors/mxfp4`, `quantization/utils/mxfp_utils.py`; llm-compressor
`observers/base.py`, `get_global_scale`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self

import numpy as np

from ...graph.dtypes import DType, Float32
from ..committed import Committed, Tunable
from ..encoding import Bytes, Encoding, Part
from ._elements import E2M1, E4M3
from .ct_base import PACKED, SCALE, Codes, Grouped, largest
from .mlx_pack import FLOATS, pack

GLOBAL_SCALE = "weight_global_scale"
# What stands for an E4M3 scale of zero: 0.125. Source: compressed-tensors, `_get_dtype_eps`.
_LEAST_SCALE = 0x20


class _Float4(Grouped, Tunable):
    class_name = "q4"

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        scales = Part(SCALE, np.dtype("u1"), (n_cols // self.block,))
        return Part(PACKED, np.dtype("u1"), (n_cols // 2,)), scales

    def decode(self, *parts: Bytes) -> Float32:
        return self.values(self.committed(*parts))

    @property
    def levels(self) -> Float32:
        return E2M1.table

    def committed(self, *parts: Bytes) -> Committed:
        packed, scales = parts
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        return Committed(codes, self._factors(scales))

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return pack(np.ascontiguousarray(found.codes), 4).view(np.uint8), parts[1]

    def _stored(self, codes: Codes, *parameters: Float32) -> tuple[Bytes, ...]:
        return pack(codes, 4).view(np.uint8), parameters[0].astype(np.uint8)

    @abstractmethod
    def _factors(self, scales: Bytes) -> Float32:
        """What stored scales multiply by."""


def _codes(values: Float32) -> Codes:
    """Of zeros the sign stays only where something was rounded to them."""
    return E2M1.magnitudes(values) | ((values < 0).astype(np.uint8) << np.uint8(3))


class MxFp4(_Float4):
    """The scale is a power of two, by which the largest magnitude of a group is at most 7, and rounded to 6."""

    block = 32
    activation_block = 32

    def __init__(self, dtype: str) -> None:
        super().__init__("ct_mxfp4", dtype)
        self.dtypes = {PACKED: DType.U8, SCALE: DType.U8}

    def _fit(self, groups: Float32) -> tuple[Codes, *tuple[Float32, ...]]:
        exponents = mx_exponents(largest(groups))
        factors = self._round(np.ldexp(np.float32(1), exponents - 127))
        exponents[factors == 0] = 127  # too small for float16: the library takes one
        factors[factors == 0] = 1
        return _codes(self._round(groups / factors[:, None])), exponents.astype(np.float32)

    def _factors(self, scales: Bytes) -> Float32:
        return np.ldexp(np.float32(1), scales.astype(np.int32) - 127)


def mx_exponents(sizes: Float32) -> Bytes:
    """Exponents, counted from 127, of the scales of groups with these largest magnitudes: a quarter of the power of two
    that is nearest where seven eighths count as whole.
    """
    bits = np.ascontiguousarray(sizes).view(np.int32)
    return np.clip(((bits + (1 << 21)) >> 23) - 2, 0, 255)


class NvFp4(_Float4):
    """Scales are E4M3. `global_scale` brings the largest of a matrix near to the largest that there is."""

    block = 16
    activation_block = 16
    global_scale = np.float32(1)

    def __init__(self, dtype: str) -> None:
        super().__init__("ct_nvfp4", dtype)
        self.dtypes = {PACKED: DType.U8, SCALE: DType.F8_E4M3}

    def of(self, global_scale: float) -> Self:
        """The encoding of matrices with this scale."""
        found = copy.copy(self)
        found.global_scale = np.float32(global_scale)
        return found

    def global_scale_of(self, size: float) -> float:
        """What a matrix whose largest magnitude this is, or several that are run as one, are scaled by."""
        least = {DType.F16.value: 2.0**-14}.get(self.floats.name, 2.0**-126)
        with np.errstate(over="ignore"):
            inverse = self._round(np.float32(1) / np.array([max(size, least)], np.float32))  # as torch divides a number
            found = self._round(inverse * np.float32(E4M3.largest * E2M1.largest))
        return float(found[0]) if np.isfinite(found[0]) else 1.0

    def _fit(self, groups: Float32) -> tuple[Codes, *tuple[Float32, ...]]:
        wanted = self.global_scale * self._round(largest(groups) / np.float32(E2M1.largest))
        scales = E4M3.magnitudes(wanted)
        scales[scales == 0] = _LEAST_SCALE
        return _codes(groups / self._factors(scales)[:, None]), scales.astype(np.float32)

    def _factors(self, scales: Bytes) -> Float32:
        return E4M3.table[scales] / self.global_scale


ENCODINGS: tuple[Encoding, ...] = tuple(encoding for dtype in FLOATS for encoding in (MxFp4(dtype), NvFp4(dtype)))
