"""A matrix whose rows are columns: kernels of convolutions, which are stored channels last."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.dtypes import Float32
from ...graph.tensor import TensorView


class Transposed(TensorView):
    """[n, m] of a small [m, n]."""

    def __init__(self, base: TensorView) -> None:
        super().__init__(base.name, base.dtype, (base.n_cols, base.n_rows))
        self._base = base

    def _rows(self, start: int, stop: int) -> Float32:
        return self._base.rows(0, self._base.n_rows).T[start:stop].copy()

    def sources(self) -> Sequence[TensorView]:
        return (self._base,)
