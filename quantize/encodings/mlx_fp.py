"""MLX's floating-point formats: tiny floats with one scale a group.

| part   | mxfp4            | mxfp8            | nvfp4            | content (row of K elements)            |
|--------|------------------|------------------|------------------|----------------------------------------|
| weight | uint32 [K/8]     | uint32 [K/4]     | uint32 [K/8]     | E2M1 or E4M3 codes, first element lowest |
| scales | uint8 [K/32]     | uint8 [K/32]     | uint8 [K/16]     | E8M0 (2^(s-127)), or E4M3 in nvfp4     |

value = element · scale. E2M1: sign, 2 exponent bits (bias 1), 1 mantissa bit; E4M3: sign, 4 (bias 7), 3.
Source: OCP Microscaling Formats 1.0; MLX `mlx/ops.cpp`, `fp_quantize` (block scales rounded up since 0.32).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ...graph.dtypes import Float32
from ..committed import Committed, Tunable
from ..encoding import Bytes
from ._elements import E2M1, E4M3, Element
from .mlx_pack import FLOATS, Codes, GroupEncoding, pack, unpack

# Of E2M1 MLX rounds ties to zero.
_E2M1 = replace(E2M1, ties_to_even=False)


class _TinyFloat(GroupEncoding, Tunable):
    """Elements of one kind with one byte of scale a group; `_tries` are the steps from it that refining looks at."""

    _tries: ClassVar[tuple[int, ...]]
    _largest_scale: ClassVar[int]

    def __init__(self, mode: str, class_name: str, element: Element, group: int, dtype: str) -> None:
        super().__init__(mode, mode=mode, bits=element.bits, group=group, dtype=dtype)
        self.class_name = class_name
        self._element = element

    def _parameters(self) -> tuple[tuple[str, np.dtype[np.generic]], ...]:
        return (("scales", np.dtype("u1")),)

    @property
    def levels(self) -> Float32:
        return self._element.table

    def committed(self, *parts: Bytes) -> Committed:
        weight, scales = parts
        return Committed(unpack(weight, self.bits), self._factors(scales))

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return pack(np.ascontiguousarray(found.codes), self.bits), parts[1]

    def _fit(self, groups: Float32) -> tuple[Bytes, ...]:
        wanted: Float32 = np.abs(groups).max(axis=0) / np.float32(self._element.largest)
        scales = self._scales(self._round(wanted))  # MLX computes in the checkpoint's type
        return self._codes(groups, scales), scales

    def _round(self, values: Float32) -> Float32:
        return self.floats.decode(*self.floats.encode(values))

    def _codes(self, groups: Float32, scales: Codes) -> Codes:
        factors = self._factors(scales)
        values = np.divide(groups, factors, out=np.zeros_like(groups), where=factors > 0)
        return self._signed(self._round(values))

    def _signed(self, values: Float32) -> Codes:
        codes = self._element.magnitudes(values)
        negative = np.signbit(values)
        if not self._element.ties_to_even:
            negative &= codes > 0  # MLX finds E2M1 codes by distance, where the first zero is as near as the second
        codes |= negative.astype(np.uint8) << np.uint8(self.bits - 1)
        return codes

    def _refine(self, groups: Float32, weights: Float32 | None) -> tuple[Bytes, ...]:
        first = self._fit(groups)
        return self._best(groups, weights, first, self._candidates(groups, first[1]))

    def _candidates(self, groups: Float32, scales: Codes) -> Iterator[tuple[Bytes, ...]]:
        for step in self._tries:
            tried = np.clip(scales.astype(np.int16) + step, 1, self._largest_scale).astype(np.uint8)
            yield self._codes(groups, tried), tried

    def _values(self, codes: Codes, *parameters: Bytes) -> Float32:
        values: Float32 = self._element.table[codes] * self._factors(parameters[0])
        return values

    @abstractmethod
    def _scales(self, wanted: Float32) -> Codes:
        """The stored scales nearest to those wanted, rounded as MLX does."""

    @abstractmethod
    def _factors(self, scales: Codes) -> Float32:
        """What stored scales multiply by."""


class MicroScaling(_TinyFloat):
    """OCP MX: the scale is a power of two, rounded up so that the largest element is never cut."""

    _tries = (-1, 1)
    _largest_scale = 253

    def _scales(self, wanted: Float32) -> Codes:
        exponents = (wanted.view(np.uint32) + np.uint32(0x7F_FFFF)) >> np.uint32(23)
        # no scale for a group that is zero, or too close to it for a normal float32
        return np.where(wanted < np.finfo(np.float32).tiny, 127, exponents).astype(np.uint8)

    def _factors(self, scales: Codes) -> Float32:
        return np.ldexp(np.float32(1), scales.astype(np.int32) - 127)


class NvFp4(_TinyFloat):
    """NVIDIA's: the scale is an E4M3 float; MLX writes no second scale for the whole tensor."""

    _tries = (-4, -3, -2, -1, 1, 2, 3, 4)
    _largest_scale = 126

    def _scales(self, wanted: Float32) -> Codes:
        return E4M3.magnitudes(wanted)

    def _factors(self, scales: Codes) -> Float32:
        return E4M3.table[scales]


def _encodings(dtype: str) -> tuple[_TinyFloat, ...]:
    return (
        MicroScaling("mxfp4", "q4", _E2M1, 32, dtype),
        MicroScaling("mxfp8", "q5", E4M3, 32, dtype),
        NvFp4("nvfp4", "q4", _E2M1, 16, dtype),
    )


ENCODINGS = tuple(encoding for dtype in FLOATS for encoding in _encodings(dtype))
