"""The search for tables: k-means in one dimension, of sorted values with running sums, so that a cluster costs a few steps.

First the best of all tables whose clusters begin at one of a few hundred places, by dynamic programming; then rounds that
let them begin anywhere. K-means from a guess ends in tables that leave a tenth more where tails are long.
Source: Wang and Song 2011 (`Ckmeans.1d.dp`); Knuth 1971 for the bounds on where a best last cluster begins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ._jit import kernel

_Sums = NDArray[np.float64]
_Places = NDArray[np.int64]

# Places where clusters may begin at first: so many equal shares of the values, and so many equal steps of their range.
_SHARES = 128
_ROUNDS = 100


@kernel
def _cost(sums: _Sums, squares: _Sums, start: int, stop: int) -> float:
    """Squared error of values [start, stop) from their mean."""
    sum_ = sums[stop] - sums[start]
    return squares[stop] - squares[start] - sum_ * sum_ / (stop - start)


@kernel
def _places(values: Float32) -> _Places:
    """Distinct places in ascending order, the first and the end among them."""
    n = len(values)
    found = np.empty(2 * _SHARES + 2, np.int64)
    for i in range(_SHARES):
        found[2 * i] = n * i // _SHARES
        step = values[0] + np.float32(i / _SHARES) * (values[n - 1] - values[0])
        found[2 * i + 1] = np.searchsorted(values, step)
    found[-2], found[-1] = 0, n
    return np.unique(found)


@kernel
def _partition(places: _Places, sums: _Sums, squares: _Sums, n_levels: int) -> _Places:
    """Where the best clusters begin, among some places: indices of values [levels + 1], the first 0 and the last the end.

    `begins[k, j]` is where the last of k + 1 clusters of the values before place j begins; it is no earlier than that of
    one cluster less, and no later than that of values up to the next place.
    """
    n = len(places)
    least = np.full((n_levels, n), np.inf)
    begins = np.zeros((n_levels, n), np.int64)
    for j in range(1, n):
        least[0, j] = _cost(sums, squares, places[0], places[j])
    for k in range(1, n_levels):
        for j in range(n - 1, k, -1):
            low, high = max(begins[k - 1, j], k), begins[k, j + 1] if j + 1 < n else j - 1
            for begin in range(low, min(high, j - 1) + 1):
                total = least[k - 1, begin] + _cost(sums, squares, places[begin], places[j])
                if total < least[k, j]:
                    least[k, j], begins[k, j] = total, begin
    found = np.zeros(n_levels + 1, np.int64)
    j = n - 1
    for k in range(n_levels - 1, -1, -1):
        found[k + 1] = places[j]
        j = begins[k, j]
    return found


@kernel
def _settle(values: Float32, sums: _Sums, starts: _Places, table: Float32) -> None:
    """Rounds of k-means: each level is its cluster's mean, each cluster what is nearest to its level."""
    n_levels = len(table)
    for _ in range(_ROUNDS):
        for level in range(n_levels):
            start, stop = starts[level], starts[level + 1]
            if stop > start:
                table[level] = np.float32((sums[stop] - sums[start]) / (stop - start))
        is_settled = True
        for level in range(1, n_levels):
            start = np.searchsorted(values, (table[level - 1] + table[level]) / 2)
            is_settled &= start == starts[level]
            starts[level] = start
        if is_settled:
            break


@kernel
def tables(groups: Float32, n_levels: int) -> Float32:
    """The table found [n, n_levels], ascending, of each group of values [n, size], ascending. Fewer values than levels
    fill the rest with the last.
    """
    n, size = groups.shape
    found = np.empty((n, n_levels), np.float32)
    sums, squares = np.zeros(size + 1), np.zeros(size + 1)
    for group in range(n):
        values = groups[group]
        for i in range(size):
            sums[i + 1] = sums[i] + values[i]
            squares[i + 1] = squares[i] + np.float64(values[i]) * values[i]
        places = _places(values)
        n_clusters = min(n_levels, len(places) - 1)
        starts = _partition(places, sums, squares, n_clusters)
        table = found[group]
        _settle(values, sums, starts, table[:n_clusters])
        table[n_clusters:] = table[n_clusters - 1]
    return found


@kernel
def nearest(values: Float32, tables: Float32) -> NDArray[np.uint8]:
    """The index [n, size] of the nearest entry of each value's table [n, levels], ascending."""
    n, size = values.shape
    found = np.empty((n, size), np.uint8)
    middles = np.empty(tables.shape[1] - 1, np.float32)
    for row in range(n):
        for level in range(len(middles)):
            middles[level] = (tables[row, level] + tables[row, level + 1]) / 2
        for i in range(size):
            index = 0
            for middle in middles:
                index += values[row, i] > middle
            found[row, i] = index
    return found
