"""Operations that read or write at places: slices, gathers, scatters.

Since iOS 17 an index out of bounds, a negative one too, is undefined: it is refused here, whatever a device makes of it.
Source: coremltools 9.0 `mil/ops/defs/iOS15/scatter_gather.py`, `iOS17/scatter_gather.py`, `_utils.py`
(solve_slice_by_index_slice), `iOS18/tensor_transformation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np

from ..weights import Weight
from .operator import Operator

Array = Any


def _slices(
    x: Array, begin: Array, end: Array, stride: Array, begin_mask: Array, end_mask: Array, squeeze_mask: Array
) -> tuple[slice | int, ...]:
    def flag(mask: Array, axis: int) -> bool:
        return mask is not None and bool(mask[axis])

    found: list[slice | int] = []
    for axis in range(x.ndim):
        first = None if flag(begin_mask, axis) else int(begin[axis])
        if flag(squeeze_mask, axis):
            found.append(first or 0)
            continue
        last = None if flag(end_mask, axis) else int(end[axis])
        found.append(slice(first, last, 1 if stride is None else int(stride[axis])))
    return tuple(found)


def _slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array = None,
    begin_mask: Array = None,
    end_mask: Array = None,
    squeeze_mask: Array = None,
) -> Array:
    return x[_slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def write_slice(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Array = None,
    begin_mask: Array = None,
    end_mask: Array = None,
    squeeze_mask: Array = None,
) -> Array:
    """x itself, updated where it lies."""
    where = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if x[where].shape != update.shape:
        raise ValueError(f"an update {list(update.shape)} of a slice {list(x[where].shape)} of {list(x.shape)}")
    x[where] = update
    return x


@wraps(write_slice)
def _slice_update(x: Array, **operands: Array) -> Array:
    return write_slice(x.copy(), **operands)


def _slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    """A size of -1 is what remains."""
    slices = []
    for axis, (first, count) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        stop = x.shape[axis] if count == -1 else start + count
        if not 0 <= start <= stop <= x.shape[axis]:
            raise ValueError(f"a slice [{start}, {stop}) of axis {axis} of {list(x.shape)}")
        slices.append(slice(start, stop))
    return x[tuple(slices)]


def _bounded(indices: Array, size: int, *, negative: bool) -> Array:
    """The indices as numpy takes them. Raises: ValueError for one out of bounds."""
    least = -size if negative else 0
    if indices.size and (indices.min() < least or indices.max() >= size):
        raise ValueError(f"indices {indices.min()} … {indices.max()} of an axis of {size}")
    return indices.astype(np.intp)


class _Indexed:
    """The operations that take indices, which may be negative or not."""

    def __init__(self, *, negative: bool) -> None:
        self._negative = negative

    def _bounded(self, indices: Array, size: int) -> Array:
        return _bounded(indices, size, negative=self._negative)

    def gather(
        self, x: Array, indices: Array, axis: Array = 0, batch_dims: Array = 0, validate_indices: Array = False
    ) -> Array:
        along, n_batch = int(axis) % len(x.shape), int(batch_dims)
        places = self._bounded(indices, x.shape[along])
        if isinstance(x, Weight):
            if along == 0 and not n_batch:
                return x.take(places % x.shape[0])
            x = x.whole()
        if not n_batch:
            return np.take(x, places, axis=along)
        batch = x.shape[:n_batch]
        flat = (int(np.prod(batch)), *x.shape[n_batch:])
        pairs = zip(x.reshape(flat), places.reshape(-1, *places.shape[n_batch:]), strict=True)
        return np.stack([np.take(a, i, axis=along - n_batch) for a, i in pairs]).reshape(
            *batch, *x.shape[n_batch:along], *places.shape[n_batch:], *x.shape[along + 1 :]
        )

    def gather_along_axis(self, x: Array, indices: Array, axis: Array = 0, validate_indices: Array = False) -> Array:
        return np.take_along_axis(x, self._bounded(indices, x.shape[int(axis)]), int(axis))

    def gather_nd(self, x: Array, indices: Array, batch_dims: Array = 0, validate_indices: Array = False) -> Array:
        if int(batch_dims):
            raise ValueError("batches of places are not evaluated")
        return x[self._places(x, indices)]

    def scatter(
        self,
        data: Array,
        indices: Array,
        updates: Array,
        axis: Array = 0,
        mode: str = "add",
        validate_indices: Array = False,
    ) -> Array:
        along = int(axis) % data.ndim
        places = self._bounded(indices, data.shape[along])
        return _scattered(data, (slice(None),) * along + (places,), updates, mode)

    def scatter_along_axis(
        self,
        data: Array,
        indices: Array,
        updates: Array,
        axis: Array = 0,
        mode: str = "add",
        validate_indices: Array = False,
    ) -> Array:
        along = int(axis) % data.ndim
        where = list(np.indices(indices.shape, sparse=True))
        where[along] = self._bounded(indices, data.shape[along])
        return _scattered(data, tuple(where), updates, mode)

    def scatter_nd(
        self, data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: Array = False
    ) -> Array:
        return _scattered(data, self._places(data, indices), updates, mode)

    def _places(self, x: Array, indices: Array) -> tuple[Array, ...]:
        return tuple(self._bounded(indices[..., axis], x.shape[axis]) for axis in range(indices.shape[-1]))


_MODES: Mapping[str, Callable[..., None]] = {
    "add": np.add.at,
    "sub": np.subtract.at,
    "mul": np.multiply.at,
    "div": np.divide.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


def _scattered(data: Array, where: tuple[Any, ...], updates: Array, mode: str) -> Array:
    found = data.copy()
    if found[where].shape != updates.shape:
        raise ValueError(f"updates {list(updates.shape)} of {list(found[where].shape)} places")
    if mode == "update":
        found[where] = updates
    elif mode in _MODES:
        _MODES[mode](found, where, updates)
    else:
        raise ValueError(f"its mode '{mode:.40}' is unknown")
    return found


def indexing(*, negative: bool) -> dict[str, Operator]:
    """The table; `negative` says whether indices may count from the end, as they may before iOS 17."""
    indexed = _Indexed(negative=negative)
    return {
        "gather": Operator(indexed.gather, stored=("x",)),
        "gather_along_axis": Operator(indexed.gather_along_axis),
        "gather_nd": Operator(indexed.gather_nd),
        "scatter": Operator(indexed.scatter, alike=("data", "updates")),
        "scatter_along_axis": Operator(indexed.scatter_along_axis, alike=("data", "updates")),
        "scatter_nd": Operator(indexed.scatter_nd, alike=("data", "updates")),
        "slice_by_index": Operator(_slice_by_index),
        "slice_by_size": Operator(_slice_by_size),
        "slice_update": Operator(_slice_update, alike=("x", "update")),
    }
