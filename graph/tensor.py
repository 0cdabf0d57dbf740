"""Lazy tensor handles: the only thing stages hand to each other.

A handle is read in rows. A tensor of shape (..., n_cols) is seen as the matrix of its last axis:
n_rows is the product of the leading axes, and a 1-D tensor is one row.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .dtypes import DType, Float32
from .errors import InputError
from .grid import Grid, GridRows

Shape = tuple[int, ...]
# Arrays that are cut by rows, and what reads them of a range of a tensor's rows.
Arrays = tuple[NDArray[Any], ...]
Read = Callable[["TensorView", int, int], Arrays]


def n_rows_of(shape: Shape) -> int:
    """Rows of the matrix that a shape is seen as."""
    return math.prod(shape[:-1])


class TensorView(ABC):
    """A named tensor that yields float32 rows on demand and holds none of them.

    Shapes: `rows(start, stop)` is [stop - start, n_cols]. `is_observed` says that somebody counts what is read, so that
    rows must be read even where nothing is left to do with them.
    """

    is_observed: ClassVar[bool] = False

    def __init__(self, name: str, dtype: DType, shape: Shape) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape

    @property
    def n_cols(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return n_rows_of(self.shape)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row in the dtype the tensor is stored in."""
        return self.n_cols * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in the dtype the tensor is stored in."""
        return math.prod(self.shape) * self.dtype.bits // 8

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) as a new float32 array.

        Raises: IndexError for a range outside the tensor; InputError if the source holds NaN or
        infinity, or yields another shape than it declared.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start}:{stop} of '{self.name}', which has {self.n_rows}")
        values = self._rows(start, stop)
        if values.shape != (stop - start, self.n_cols) or values.dtype != np.float32:
            raise InputError(
                f"tensor '{self.name}' yielded {values.dtype} {values.shape} for rows "
                f"{start}:{stop}; declared float32 {(stop - start, self.n_cols)}"
            )
        return values

    def renamed(self, name: str) -> Self:
        """The same tensor under another name."""
        other = copy.copy(self)
        other.name = name
        return other

    @property
    def stored_as(self) -> str | None:
        """The encoding whose parts `stored_rows` gives, by name; None if there are floats alone."""
        return None

    @property
    def grid(self) -> Grid | None:
        """The grid of `grid_rows`; None if there is none."""
        return None

    def stored_rows(self, start: int, stop: int) -> Arrays:
        """The parts of rows as they are stored, where `stored_as` says how."""
        raise ValueError(f"'{self.name}' has no stored parts")

    def grid_rows(self, start: int, stop: int) -> GridRows:
        """Rows on their grid, if there is one."""
        raise ValueError(f"'{self.name}' has no grid")

    def place(self, row: int) -> tuple[str, int]:
        """Where a row lies in the source, as file and offset, for who reads many in order; alike where it is unknown."""
        return "", 0

    def sources(self) -> Sequence[TensorView]:
        """The tensors that it is a view of; none for one that holds or reads its rows itself."""
        return ()

    def read(self) -> Float32:
        """The whole tensor in its own shape."""
        return self.rows(0, self.n_rows).reshape(self.shape)

    @abstractmethod
    def _rows(self, start: int, stop: int) -> Float32: ...


class DeclaredTensor(TensorView):
    """A tensor known by its shape only: what a plan made from a config alone is built of."""

    def __init__(self, name: str, shape: Shape, dtype: DType = DType.BF16) -> None:
        super().__init__(name, dtype, shape)

    def _rows(self, start: int, stop: int) -> Float32:
        raise InputError(f"tensor '{self.name}' has no data: the folder holds a config and no weights")


class ArrayTensor(TensorView):
    """A tensor in memory."""

    def __init__(self, name: str, values: Float32) -> None:
        super().__init__(name, DType.F32, values.shape)
        self._matrix = values.reshape(-1, values.shape[-1])

    def _rows(self, start: int, stop: int) -> Float32:
        return self._matrix[start:stop].copy()


class ZeroTensor(TensorView):
    """All zeros: what a format demands and a checkpoint leaves out."""

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__(name, DType.F32, shape)

    def _rows(self, start: int, stop: int) -> Float32:
        return np.zeros((stop - start, self.n_cols), np.float32)


class RowsOf(TensorView):
    """A tensor whose rows are rows of others: read as floats, as they are stored, or on their grid, all alike."""

    def _rows(self, start: int, stop: int) -> Float32:
        (values,) = self._take(_floats, start, stop)
        return values

    @property
    def stored_as(self) -> str | None:
        found = {source.stored_as for source in self.sources()}
        return found.pop() if len(found) == 1 else None

    @property
    def grid(self) -> Grid | None:
        found = {source.grid for source in self.sources()}
        return found.pop() if len(found) == 1 else None

    def stored_rows(self, start: int, stop: int) -> Arrays:
        return self._take(_stored, start, stop)

    def grid_rows(self, start: int, stop: int) -> GridRows:
        return GridRows(*self._take(_on_grid, start, stop))

    @abstractmethod
    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        """What `read` gives of the rows [start, stop), put together of the sources'."""


def _floats(view: TensorView, start: int, stop: int) -> Arrays:
    return (view.rows(start, stop),)


def _stored(view: TensorView, start: int, stop: int) -> Arrays:
    return view.stored_rows(start, stop)


def _on_grid(view: TensorView, start: int, stop: int) -> Arrays:
    return view.grid_rows(start, stop)


def _joined(read: Read, pieces: Iterable[tuple[TensorView, int, int]], empty: TensorView) -> Arrays:
    """Ranges of rows one after the other; if there is none, an empty one of `empty`."""
    found = [read(*piece) for piece in pieces] or [read(empty, 0, 0)]
    return found[0] if len(found) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


class StackedTensor(RowsOf):
    """Equal tensors stacked on a new first axis: [n, *shape], without holding any of them."""

    def __init__(self, name: str, parts: Sequence[TensorView]) -> None:
        dtypes = {part.dtype for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else DType.F32
        super().__init__(name, dtype, (len(parts), *parts[0].shape))
        self._parts = tuple(parts)

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        each = self._parts[0].n_rows
        pieces = []
        for index in range(start // each, -(-stop // each)):
            first = index * each
            pieces.append((self._parts[index], max(start - first, 0), min(stop - first, each)))
        return _joined(read, pieces, self._parts[0])

    def place(self, row: int) -> tuple[str, int]:
        index, row = divmod(row, self._parts[0].n_rows)
        return self._parts[index].place(row)

    def sources(self) -> Sequence[TensorView]:
        return self._parts


class SlicedTensor(RowsOf):
    """A window of the second to last axis: base[..., start:start+count, :]."""

    def __init__(self, name: str, base: TensorView, start: int, count: int) -> None:
        super().__init__(name, base.dtype, (*base.shape[:-2], count, base.shape[-1]))
        self._base, self._start, self._count = base, start, count

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        period = self._base.shape[-2]
        pieces = []
        for block in range(start // self._count, -(-stop // self._count)):
            low = max(start, block * self._count) - block * self._count
            high = min(stop - block * self._count, self._count)
            first = block * period + self._start
            pieces.append((self._base, first + low, first + high))
        return _joined(read, pieces, self._base)

    def place(self, row: int) -> tuple[str, int]:
        block, row = divmod(row, self._count)
        return self._base.place(block * self._base.shape[-2] + self._start + row)

    def sources(self) -> Sequence[TensorView]:
        return (self._base,)


class WindowTensor(RowsOf):
    """A run of rows of a tensor under a shape of its own, such as one expert of a stack."""

    def __init__(self, name: str, base: TensorView, start_row: int, shape: Shape) -> None:
        super().__init__(name, base.dtype, shape)
        self._base, self._start = base, start_row

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        return read(self._base, self._start + start, self._start + stop)

    def place(self, row: int) -> tuple[str, int]:
        return self._base.place(self._start + row)

    def sources(self) -> Sequence[TensorView]:
        return (self._base,)


class ReshapedTensor(RowsOf):
    """The same rows under another shape with the same last axis."""

    def __init__(self, base: TensorView, shape: Shape) -> None:
        if shape[-1] != base.n_cols or math.prod(shape) != math.prod(base.shape):
            raise ValueError(f"'{base.name}' of shape {base.shape} cannot be seen as {shape}")
        super().__init__(base.name, base.dtype, shape)
        self._base = base

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        return read(self._base, start, stop)

    def place(self, row: int) -> tuple[str, int]:
        return self._base.place(row)

    def sources(self) -> Sequence[TensorView]:
        return (self._base,)


class ScaledTensor(TensorView):
    """A tensor times a factor, in float32."""

    def __init__(self, base: TensorView, factor: float) -> None:
        super().__init__(base.name, DType.F32, base.shape)
        self._base, self.factor = base, np.float32(factor)

    def _rows(self, start: int, stop: int) -> Float32:
        return self._base.rows(start, stop) * self.factor

    def place(self, row: int) -> tuple[str, int]:
        return self._base.place(row)

    def sources(self) -> Sequence[TensorView]:
        return (self._base,)


class OffsetTensor(TensorView):
    """A tensor plus a number, in float32."""

    def __init__(self, base: TensorView, offset: float) -> None:
        super().__init__(base.name, DType.F32, base.shape)
        self.base, self.offset = base, np.float32(offset)

    def _rows(self, start: int, stop: int) -> Float32:
        return self.base.rows(start, stop) + self.offset

    def place(self, row: int) -> tuple[str, int]:
        return self.base.place(row)

    def sources(self) -> Sequence[TensorView]:
        return (self.base,)


def without_offset(view: TensorView, offset: float) -> TensorView:
    """The tensor to which an offset was added, to the bit where it is still at hand."""
    if isinstance(view, OffsetTensor) and view.offset == np.float32(offset):
        return view.base
    return OffsetTensor(view, -offset)


class JoinedTensor(RowsOf):
    """The rows of several matrices, one after the other."""

    def __init__(self, name: str, parts: Sequence[TensorView]) -> None:
        dtypes = {part.dtype for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else DType.F32
        super().__init__(name, dtype, (sum(part.n_rows for part in parts), parts[0].n_cols))
        self._parts = tuple(parts)

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        pieces, first = [], 0
        for part in self._parts:
            low, high = max(start - first, 0), min(stop - first, part.n_rows)
            if low < high:
                pieces.append((part, low, high))
            first += part.n_rows
        return _joined(read, pieces, self._parts[0])

    def place(self, row: int) -> tuple[str, int]:
        for part in self._parts:
            if row < part.n_rows:
                return part.place(row)
            row -= part.n_rows
        return "", 0

    def sources(self) -> Sequence[TensorView]:
        return self._parts
