"""Encodings whose codes lie on an integer grid, and which grids of others they can hold as they are.

| a grid has          | an encoding that has | holds it if                                                            |
|---------------------|----------------------|------------------------------------------------------------------------|
| n bits              | more, or as many     | every code fits after the zero point has moved                         |
| groups of g         | groups that divide g | always: scales are repeated                                            |
| scales of a type    | the same, or float32 | always                                                                 |
| one zero point      | offsets              | it is a power of two, or its products with the scales are exact        |
| offsets             | zero points          | never                                                                  |

What it then stands for is the same float32 in every element, but for the sign of zeros.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from ..graph.dtypes import DType, Float32
from ..graph.errors import InputError
from ..graph.grid import Grid, GridRows
from ..graph.tensor import TensorView
from .committed import Committed, Tunable, integer_levels
from .encoding import Bytes, Encoding

_LARGEST = {DType.F16: 65504.0}


class OnGrid(Tunable):
    """An encoding with codes, scales, and zero points or offsets. Codes below `lowest_code` are not stored."""

    lowest_code: ClassVar[int] = 0

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """Its own grid."""

    @abstractmethod
    def to_grid(self, *parts: Bytes) -> GridRows:
        """The grid of stored parts."""

    @abstractmethod
    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        """Parts of rows that lie on its own grid."""

    @property
    def levels(self) -> Float32:
        return integer_levels(self.grid.bits, zero=self.grid.zero or 0, lowest=self.lowest_code)

    @property
    def refits(self) -> DType | None:
        return self.grid.scales

    def committed(self, *parts: Bytes) -> Committed:
        codes, scales, shifts = self.to_grid(*parts)
        if self.grid.has_offsets:
            return Committed(codes, scales, offsets=shifts)
        return Committed(codes, scales, zeros=shifts if self.grid.zero is None else None)

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        shifts = found.offsets if self.grid.has_offsets else found.zeros
        if shifts is None:
            shifts = repeated(self.grid.zero or 0, found.scales)
        return self._from_grid(GridRows(found.codes, found.scales, shifts))

    def holds(self, grid: Grid) -> bool:
        """Whether rows on that grid can be stored without any of them changing."""
        own = self.grid
        is_alike = grid.bits <= own.bits and grid.group % own.group == 0 and own.scales in (grid.scales, DType.F32)
        return is_alike and _shifts_fit(grid, own)

    def from_grid(self, grid: Grid, rows: GridRows) -> tuple[Bytes, ...]:
        """Parts of rows on a grid that it `holds`.

        Raises: InputError for an offset that is beyond its type.
        """
        own = self.grid
        codes, scales, shifts = rows
        times = grid.group // own.group
        if times > 1:
            scales, shifts = (np.repeat(values, times, axis=1) for values in (scales, shifts))
        if own.has_offsets and not grid.has_offsets:
            shifts = -shifts * scales
            if not (np.abs(shifts) <= _LARGEST.get(own.scales, np.inf)).all():
                raise InputError(f"an offset of {np.abs(shifts).max():g} is beyond {own.scales.value}")
        elif own.zero is not None and grid.zero is not None:
            codes, shifts = codes + np.uint8(own.zero - grid.zero), np.full_like(shifts, own.zero)
        return self._from_grid(GridRows(codes, scales, shifts))


def _shifts_fit(grid: Grid, own: Grid) -> bool:
    if grid.has_offsets:
        return own.has_offsets
    if own.has_offsets:
        is_shift = grid.zero is not None and grid.zero & (grid.zero - 1) == 0
        return grid.scales is not DType.F32 and (is_shift or own.scales is DType.F32)
    if own.zero is None:
        return True
    return grid.zero is not None and 0 <= own.zero - grid.zero <= own.top - grid.top


def passes(view: TensorView, encoding: Encoding) -> bool:
    """Whether rows of a tensor go into an encoding unchanged: it is what they are stored as, or holds their grid."""
    if view.stored_as is not None and view.stored_as == encoding.stored_name:
        return True
    return view.grid is not None and isinstance(encoding, OnGrid) and encoding.holds(view.grid)


def passed(view: TensorView, encoding: Encoding, start: int, stop: int) -> tuple[Bytes, ...]:
    """The parts of rows of a tensor that `passes`."""
    if view.stored_as is not None and view.stored_as == encoding.stored_name:
        return view.stored_rows(start, stop)
    if view.grid is None or not isinstance(encoding, OnGrid):
        raise ValueError(f"'{view.name}' cannot be stored as {encoding.name} unchanged")
    return encoding.from_grid(view.grid, view.grid_rows(start, stop))


def repeated(zero: int, scales: Float32) -> Float32:
    """The same zero point for every scale."""
    return np.full_like(scales, zero)
