"""Constants as a package stores them, decoded to float32 a range of rows at a time.

| operation                        | value                                                |
|----------------------------------|------------------------------------------------------|
| const                            | as stored                                            |
| constexpr_blockwise_shift_scale  | scale · (data - offset), a scale and offset a block  |
| constexpr_affine_dequantize      | the same, a scale and offset an entry of one axis    |
| constexpr_lut_to_dense           | the table's entry of each index, a table a block     |
| constexpr_sparse_to_dense        | the values in order where a bit is set, 0 elsewhere  |
| constexpr_cast                   | as stored                                            |

A row is an entry of the first axis. Source: coremltools 9.0 `mil/ops/defs/iOS16/constexpr_ops.py`,
`iOS18/compression.py` (decompress).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .element_types import FLOAT16, ElementType, unpack

Shape = tuple[int, ...]
Held = NDArray[Any]

# Rows of a large matrix are decoded and used this many numbers at a time: 2 MiB, what a core's cache holds.
BLOCK_NUMBERS = 1 << 19


class Weight(ABC):
    """A constant that lies in a package, and what it is the value of.

    `key` is the same for constants of two functions that lie in the same place, so that one decoding serves both.
    """

    element: ElementType
    shape: Shape
    key: Hashable

    @abstractmethod
    def rows(self, start: int, stop: int) -> Held:
        """Entries [start, stop) of the first axis, decoded. Shapes: [stop - start, *shape[1:]]."""

    def whole(self) -> Held:
        """All of it; a scalar has no rows of its own."""
        if not self.shape:
            return self.rows(0, 1).reshape(())
        return self.rows(0, self.shape[0])

    def take(self, indices: NDArray[np.integer]) -> Held:
        """The rows of these indices, each distinct one decoded once. Shapes: [*indices.shape, *shape[1:]]."""
        distinct, places = np.unique(indices, return_inverse=True)
        decoded = [self.rows(int(i), int(i) + 1) for i in distinct]
        kind = decoded[0].dtype if decoded else np.dtype(self.element.held)
        found = np.concatenate(decoded) if decoded else np.empty((0, *self.shape[1:]), kind)
        return found[places.reshape(indices.shape)]

    def spans(self) -> Iterator[tuple[int, int]]:
        """All rows in order, a block at a time: the first, and the one after the last."""
        height = max(1, BLOCK_NUMBERS // max(1, self.row_size))
        for start in range(0, self.shape[0], height):
            yield start, min(start + height, self.shape[0])

    def over_blocks(self, function: Callable[[int, Held], Held]) -> list[Held]:
        """What a function makes of each block and its first row, in order."""
        return [function(start, self.rows(start, stop)) for start, stop in self.spans()]

    @property
    def row_size(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Stored(Weight):
    """Numbers as they lie in a file or in the spec; `data` are their bytes."""

    element: ElementType
    shape: Shape
    data: NDArray[np.uint8]
    key: Hashable

    def rows(self, start: int, stop: int) -> Held:
        width = self.row_size
        shape = (stop - start, *self.shape[1:])
        if self.element.bits < 8:
            return unpack(self.data, self.element, start * width, (stop - start) * width).reshape(shape)
        size = self.element.bits // 8
        values = self.data[start * width * size : stop * width * size].view(self.element.stored)
        return values.astype(self.element.held, copy=False).reshape(shape)


@dataclass(frozen=True, eq=False)
class Scaled(Weight):
    """scale · (data - offset); both have as many entries along each axis as there are blocks."""

    element: ElementType
    data: Weight
    scale: Weight
    offset: Weight | None

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.data.shape

    @property
    def key(self) -> Hashable:  # type: ignore[override]
        return ("scaled", self.data.key, self.scale.key, self.offset and self.offset.key)

    def rows(self, start: int, stop: int) -> Held:
        codes = self.data.rows(start, stop)
        values = codes.astype(np.float32, order="C").reshape(_split(codes.shape, self.scale.shape))
        if self.offset is not None:
            values -= self._of_blocks(self.offset, start, stop)
        values *= self._of_blocks(self.scale, start, stop)
        return values.reshape(codes.shape)

    def _of_blocks(self, part: Weight, start: int, stop: int) -> Held:
        return _of_blocks(part, self.shape[0], start, stop)


@dataclass(frozen=True, eq=False)
class Palettes(Weight):
    """Entries of tables of numbers; `tables` is [*blocks along each axis, entries, 1]."""

    element: ElementType
    indices: Weight
    tables: Weight

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.indices.shape

    @property
    def key(self) -> Hashable:  # type: ignore[override]
        return ("palettes", self.indices.key, self.tables.key)

    def rows(self, start: int, stop: int) -> Held:
        indices = self.indices.rows(start, stop)
        n_blocks = self.tables.shape[:-2]
        n_entries = self.tables.shape[-2]
        tables = _rows_of_blocks(self.tables, self.shape[0], start, stop).reshape(-1)
        places = indices.astype(np.intp).reshape(_split(indices.shape, n_blocks))
        first = np.arange((stop - start) * math.prod(n_blocks[1:])) * n_entries
        spread = [stop - start]
        for blocks in n_blocks[1:]:
            spread += [blocks, 1]
        places += first.reshape(spread)
        return tables[places].reshape(indices.shape)


@dataclass(frozen=True, eq=False)
class Cast(Weight):
    """The same numbers, said to be of another element type."""

    element: ElementType
    source: Weight

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.source.shape

    @property
    def key(self) -> Hashable:  # type: ignore[override]
        return ("cast", self.element.name, self.source.key)

    def rows(self, start: int, stop: int) -> Held:
        return self.source.rows(start, stop).astype(self.element.held)


@dataclass(frozen=True, eq=False)
class Dense(Weight):
    """A constant of a rare kind, decoded whole: sparse ones, and tables of vectors."""

    element: ElementType
    values: Held
    key: Hashable

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.values.shape

    def rows(self, start: int, stop: int) -> Held:
        return self.values[start:stop] if self.values.shape else self.values.reshape(1)


def _split(shape: Shape, blocks: Shape) -> Shape:
    """A shape whose every axis but the first is written as [blocks, entries of a block]."""
    split = [shape[0]]
    for size, count in zip(shape[1:], blocks[1:], strict=True):
        split += [count, size // count]
    return tuple(split)


def _rows_of_blocks(part: Weight, n_rows: int, start: int, stop: int) -> Held:
    """The rows of scales or tables that belong to rows [start, stop) of what they scale."""
    height = n_rows // part.shape[0]
    if height == 1:
        return part.rows(start, stop)
    first, last = start // height, -(-stop // height)
    return part.rows(first, last)[np.arange(start, stop) // height - first]


def _of_blocks(part: Weight, n_rows: int, start: int, stop: int) -> Held:
    """The same, shaped to be broadcast over blocks as `_split` lays them out."""
    found = _rows_of_blocks(part, n_rows, start, stop).astype(np.float32, copy=False)
    shape = [stop - start]
    for count in part.shape[1:]:
        shape += [count, 1]
    return found.reshape(shape)


def rounds(weight: Weight) -> bool:
    """Whether decoding gives numbers that 16 bits do not hold, which a device keeps in 16 bits."""
    return weight.element.name == FLOAT16 and not isinstance(weight, Stored)
