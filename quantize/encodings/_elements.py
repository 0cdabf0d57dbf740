"""Floats of a byte or less, without infinities: E2M1 (1 sign bit, 2 of exponent, 1 of mantissa) and E4M3 (1, 4, 3).

Source: OCP Microscaling Formats 1.0; OCP 8-bit Floating Point 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...graph.codes import minifloat
from ...graph.dtypes import Float32

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Element:
    """One kind of them. `ties_to_even` is false where ties are rounded to zero."""

    bits: int
    mantissa: int
    largest: float
    ties_to_even: bool = True

    @property
    def bias(self) -> int:
        """What an exponent is stored with beyond its value."""
        return (1 << (self.bits - 2 - self.mantissa)) - 1

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
        return minifloat(self.bits - 1 - self.mantissa, self.mantissa)


E2M1 = Element(bits=4, mantissa=1, largest=6.0)
E4M3 = Element(bits=8, mantissa=3, largest=448.0)
