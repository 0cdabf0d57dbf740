"""Sums over tokens of squares, column by column: float32 over as many rows as stay in a cache, then float64."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.reference.cores import by_rows
from ...graph.roles import Address

Float64 = NDArray[np.float64]


class SquareSums:
    """Sums of squares [slices, columns] of each matrix, and how many tokens they are of: [slices], by weight."""

    def __init__(self) -> None:
        self.sums: dict[Address, Float64] = {}
        self.tokens: dict[Address, Float64] = {}
        self._turn = threading.Lock()  # experts run side by side, and the first of them makes the arrays

    def add(self, address: Address, n_slices: int, which: int, x: Float32, shares: Float32 | None = None) -> None:
        """Adds the rows of x [tokens, columns]; of each only a share, if there are `shares` [tokens]."""
        with self._turn:
            sums = self.sums.setdefault(address, np.zeros((n_slices, x.shape[1])))
            tokens = self.tokens.setdefault(address, np.zeros(n_slices))
        sums[which] += squares(x, shares)
        tokens[which] += len(x) if shares is None else float(shares.sum(dtype=np.float64))


def squares(x: Float32, shares: Float32 | None = None) -> Float64:
    """The sum over rows of the squares of each column."""
    total = np.zeros(x.shape[1])
    for low, high in by_rows(x) if x.size else ():
        piece = x[low:high] * x[low:high]
        if shares is not None:
            piece *= shares[low:high, None]
        total += piece.sum(axis=0)
    return total
