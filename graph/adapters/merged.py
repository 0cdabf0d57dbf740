"""A weight with the changes of adapters, made row by row as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..dtypes import DType, Float32, to_bfloat16, widen
from ..errors import InputError
from ..families.places import Seat
from ..reference.cores import SINGLE_BLAS
from ..tensor import TensorView
from .changes import Change


@dataclass(frozen=True)
class Seated:
    """A change of a stored tensor, and which of a weight's rows that tensor holds."""

    seat: Seat
    change: Change


class MergedTensor(TensorView):
    """A weight after changes, one after the other, each rounded to `dtype` as PEFT merges into a model of that type.

    Rows do not depend on the ranges they are asked for in. It is no view of the base: of what the base is stored as,
    nothing holds any more.
    """

    def __init__(self, base: TensorView, changes: Sequence[Seated], dtype: DType) -> None:
        super().__init__(base.name, dtype, base.shape)
        self._base, self._changes = base, tuple(changes)

    def _rows(self, start: int, stop: int) -> Float32:
        base = self._base.rows(start, stop)
        values = self._rounded(base)
        if values is base:
            values = base.copy()
        with SINGLE_BLAS:
            for each in self._changes:
                for row, stored, n in each.seat.runs(start, stop):
                    taken = slice(row - start, row - start + n)
                    changed = each.change.rows(stored, values[taken], base[taken], self._rounded)
                    values[taken] = self._rounded(changed)
        if not np.isfinite(values).all():
            raise InputError(f"tensor '{self.name}' overflows {self.dtype.value} where adapters are merged into it")
        return values

    def _rounded(self, values: Float32) -> Float32:
        """The nearest values that the type can hold."""
        if self.dtype is DType.BF16:
            return widen(to_bfloat16(values), DType.BF16)
        if self.dtype is DType.F16:
            with np.errstate(over="ignore"):
                return values.astype(np.float16).astype(np.float32)
        return values

    def place(self, row: int) -> tuple[str, int]:
        return self._base.place(row)
