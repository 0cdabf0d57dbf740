"""What an adapter does to the rows of one tensor, a class a kind.

| kind | rows become |
|---|---|
| `Added` | rows + scale * left @ right |
| `Decomposed` (DoRA) | magnitude / |base + product| * (rows + product), by rows; of an embedding by columns |
| `AddedBias` | rows + scale * bias |
| `Replaced` | those of another tensor |
| `ReplacedRows` | those of another tensor, some of them |

Products are of tiles of rows at fixed places, in float64: whatever range is asked for, every row is the same.
Source: PEFT 0.21.2 `tuners/lora/layer.py` and `variants.py`, `merge` and `get_delta_weight`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dtypes import Float32
from ..errors import InputError
from ..tensor import TensorView

# Rows of a tile: products of few rows cost the interpreter more than the arithmetic.
_TILE = 128

Float64 = NDArray[np.float64]


# Brings values to what the merged tensor's type can hold.
Rounding = Callable[[Float32], Float32]


class Change(ABC):
    """A change of a stored tensor. `sources` are the adapter's tensors that it reads."""

    @abstractmethod
    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        """The rows from `start` on, given as they are after earlier changes, and as the base has them."""

    @property
    @abstractmethod
    def sources(self) -> Sequence[TensorView]: ...


@dataclass(frozen=True, kw_only=True)
class Product:
    """scale * left @ right: [rows, rank] by [rank, columns]. Of a stack [n, out, in] right has the ranks of one expert
    after those of another, [n * rank, in], and left those of all experts beside each other, [out, rank * n].

    One whose `left_is_turned` is stored as [rank, rows], and its right as [columns, rank]: an embedding's.
    """

    left: TensorView
    right: TensorView
    scale: float
    n_stacked: int = 1
    left_is_turned: bool = False
    _kept: dict[str, Float32] = field(default_factory=dict, repr=False, compare=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def rank(self) -> int:
        return self.left.shape[0] if self.left_is_turned else self.left.shape[1] // self.n_stacked

    @property
    def n_rows(self) -> int:
        """Of each of the stacked matrices."""
        return self.left.shape[1] if self.left_is_turned else self.left.shape[0]

    def of(self, start: int, n: int) -> Float32:
        """The product's rows [start, start + n)."""
        pieces = []
        row, stop = start, start + n
        while row < stop:
            index, inner = divmod(row, self.n_rows)
            tile = inner // _TILE * _TILE
            end = min(tile + _TILE, self.n_rows)
            n_taken = min(end - inner, stop - row)
            found = self._tile(index, tile, end)
            pieces.append(found[inner - tile : inner - tile + n_taken])
            row += n_taken
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _tile(self, index: int, start: int, stop: int) -> Float32:
        left = self._left(start, stop)
        if self.n_stacked > 1:
            left = left.reshape(len(left), -1, self.n_stacked)[:, :, index]
        found = left.astype(np.float64) @ self._right(index).astype(np.float64)
        with np.errstate(over="ignore"):  # which whoever rounds the sum sees
            return (found * self.scale).astype(np.float32)

    def _left(self, start: int, stop: int) -> Float32:
        if not self.left_is_turned:
            return self.left.rows(start, stop)
        with self._turn:  # a table's factor lies across: it is turned once, and is small beside the table
            if "left" not in self._kept:
                self._kept["left"] = np.ascontiguousarray(self.left.read().T)
        return self._kept["left"][start:stop]

    def _right(self, index: int) -> Float32:
        if self.left_is_turned:
            return self.right.read().T
        return self.right.rows(index * self.rank, (index + 1) * self.rank)


@dataclass(frozen=True, kw_only=True)
class Added(Change):
    """With `rounds_first` the product is rounded before it is added, as PEFT does of embeddings and bare parameters."""

    product: Product
    rounds_first: bool = False

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        delta = self.product.of(start, len(values))
        return values + (rounded(delta) if self.rounds_first else delta)

    @property
    def sources(self) -> Sequence[TensorView]:
        return self.product.left, self.product.right


@dataclass(frozen=True, kw_only=True)
class AddedBias(Change):
    bias: TensorView
    scale: float

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        return values + self.bias.rows(0, 1) * np.float32(self.scale)

    @property
    def sources(self) -> Sequence[TensorView]:
        return (self.bias,)


@dataclass(frozen=True, kw_only=True)
class Decomposed(Change):
    """`name` is the adapted tensor's, for its faults."""

    name: str
    product: Product
    magnitude: TensorView

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        delta = self.product.of(start, len(values))
        norms = np.sqrt(np.square((base + delta).astype(np.float64)).sum(axis=1)).astype(np.float32)
        factor = _factor(self.magnitude.read()[start : start + len(values)], norms, self.name)
        return factor[:, None] * (values + delta)

    @property
    def sources(self) -> Sequence[TensorView]:
        return self.product.left, self.product.right, self.magnitude


@dataclass(frozen=True, kw_only=True)
class DecomposedTable(Change):
    """DoRA of an embedding, whose columns have a magnitude: `base` is the whole table, of which they have their norms."""

    name: str
    product: Product
    magnitude: TensorView
    base: TensorView
    _kept: dict[str, Float32] = field(default_factory=dict, repr=False, compare=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        with self._turn:
            if "factor" not in self._kept:
                self._kept["factor"] = _factor(self.magnitude.read(), self._norms(), self.name)
        return self._kept["factor"] * (values + self.product.of(start, len(values)))

    def _norms(self) -> Float32:
        total: Float64 = np.zeros(self.base.n_cols)
        for low in range(0, self.base.n_rows, _TILE):
            high = min(low + _TILE, self.base.n_rows)
            rows = self.base.rows(low, high) + self.product.of(low, high - low)
            total += np.square(rows.astype(np.float64)).sum(axis=0)
        return np.sqrt(total).astype(np.float32)

    @property
    def sources(self) -> Sequence[TensorView]:
        return self.product.left, self.product.right, self.magnitude


@dataclass(frozen=True, kw_only=True)
class Replaced(Change):
    by: TensorView

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        return self.by.rows(start, start + len(values))

    @property
    def sources(self) -> Sequence[TensorView]:
        return (self.by,)


@dataclass(frozen=True, kw_only=True)
class ReplacedRows(Change):
    """`at` are the rows, in the order of those of `by`."""

    by: TensorView
    at: Sequence[int]

    def rows(self, start: int, values: Float32, base: Float32, rounded: Rounding) -> Float32:
        found = values.copy()
        for index, row in enumerate(self.at):
            if start <= row < start + len(values):
                found[row - start] = self.by.rows(index, index + 1)[0]
        return found

    @property
    def sources(self) -> Sequence[TensorView]:
        return (self.by,)


# Changes by the stored tensor's name, in the order in which they are made.
Changes = Mapping[str, Sequence[Change]]


def _factor(magnitude: Float32, norms: Float32, name: str) -> Float32:
    if not norms.all():
        raise InputError(f"tensor '{name}': a row or column of weights is zero, which DoRA divides by")
    return magnitude / norms
