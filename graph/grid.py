"""The integer grid that the codes of a stored tensor lie on: a format that can hold the same grid takes it as it is.

value = (code - zero point) * scale, or code * scale + offset. Groups of columns of a row share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dtypes import DType, Float32


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is known of a tensor's grid before any row is read.

    Codes are unsigned, of `bits` bits; `group` columns share a scale, which is exact in the float type `scales`. The
    zero point is `zero` in all groups; if that is None, groups have integer zero points of their own or, if it
    `has_offsets`, what is added is a float of that type.
    """

    bits: int
    group: int
    scales: DType
    zero: int | None = None
    has_offsets: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1


class GridRows(NamedTuple):
    """Rows on a grid. Shapes: `codes` [n, n_cols]; `scales` and `shifts`, zero points or offsets, [n, n_cols / group]."""

    codes: NDArray[np.uint8]
    scales: Float32
    shifts: Float32
