"""Floats of a byte or less, without infinities: E2M1 (1 sign bit, 2 of exponent, 1 of mantissa) and E4M3 (1, 4, 3).

Source: OCP Microscaling Formats 1.0; OCP 8-bit Floating Point 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Element:
    """One kind of them. `ties_to_even` is false where ties are rounded to zero."""

    bits: int
    mantissa: int
    bias: int
    largest: float
    ties_to_even: bool = True

    def magnitudes(self, values: Float32) -> Codes:
        """Codes of the nearest elements to |values|, without sign; what is too large becomes the largest."""
        size = np.minimum(np.abs(values), np.float32(self.largest))
        drop = 23 - self.mantissa
        bits = size.view(np.uint32)
        half = np.uint32((1 << (drop - 1)) - 1)
        odd = (bits >> drop) & np.uint32(1) if self.ties_to_even else np.uint32(0)
        normal = ((bits + (half + odd)) >> drop) - np.uint32((127 - self.bias) << self.mantissa)
        least = np.float32(2.0 ** (1 - self.bias))
        steps = size * np.float32(2.0**self.mantissa / least)
        subnormal = np.rint(steps) if self.ties_to_even else np.ceil(steps - np.float32(0.5))
        return np.where(size < least, subnormal.astype(np.uint8), normal.astype(np.uint8))

    def nearest(self, values: Float32) -> Float32:
        """The elements nearest to values, as numbers; signs stay."""
        return np.copysign(self.table[self.magnitudes(values)], values)

    @cached_property
    def table(self) -> Float32:
        """The value of every code."""
        codes = np.arange(1 << self.bits)
        size = codes & ((1 << (self.bits - 1)) - 1)
        exponent, mantissa = size >> self.mantissa, size & ((1 << self.mantissa) - 1)
        significand = (mantissa + np.where(exponent > 0, 1 << self.mantissa, 0)) / (1 << self.mantissa)
        values = significand * 2.0 ** (np.maximum(exponent, 1) - self.bias)
        return np.where(codes == size, values, -values).astype(np.float32)


E2M1 = Element(bits=4, mantissa=1, bias=1, largest=6.0)
E4M3 = Element(bits=8, mantissa=3, bias=7, largest=448.0)
