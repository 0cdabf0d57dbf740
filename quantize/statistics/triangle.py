"""Second moments of a matrix's input, sum of x xᵀ over tokens: symmetric, so that the upper triangle is kept.

Packed row by row: n values of the first row from its diagonal on, n - 1 of the second, and so on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.reference.cores import cut, each

# Rows of the triangle that one core multiplies at a time.
_ROWS = 128


def n_packed(n: int) -> int:
    """Values of the upper triangle of a matrix [n, n]."""
    return n * (n + 1) // 2


def unpack(packed: Float32, n: int) -> Float32:
    """The whole matrix [n, n]."""
    whole = np.empty((n, n), np.float32)
    at = 0
    for i in range(n):
        whole[i, i:] = whole[i:, i] = packed[at : at + n - i]
        at += n - i
    return whole


class Triangle:
    """A sum in float64 of products in float32, each over the tokens of one batch; `weight` is how many it is of."""

    def __init__(self, n: int) -> None:
        self._n, self._sums = n, np.zeros(n_packed(n))
        self.weight = 0.0

    def add(self, x: Float32, shares: Float32 | None = None) -> None:
        """Adds the rows of x [tokens, n]; of each only a share, if there are `shares` [tokens]."""
        if shares is not None:
            x = x * np.sqrt(shares)[:, None]
        self.weight += len(x) if shares is None else float(shares.sum(dtype=np.float64))

        def add_rows(low: int, high: int) -> None:
            product = x[:, low:high].T @ x[:, low:]
            for i in range(low, high):
                at = i * self._n - i * (i - 1) // 2
                self._sums[at : at + self._n - i] += product[i - low, i - low :]

        each(add_rows, cut(self._n, _ROWS))

    def mean(self) -> NDArray[np.float32]:
        """Packed, divided by the tokens; zeros of none."""
        return (self._sums / (self.weight or 1)).astype(np.float32)
