"""Vectors of compiled code do what scalars do, lane by lane, for any bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from lfm_convert.quantize.encodings._jit import LANES, ROUNDER, kernel, level
from lfm_convert.quantize.encodings._kernels_iq4 import nearest_value
from lfm_convert.quantize.encodings._tables import IQ4
from lfm_convert.quantize.encodings._vectors import (
    WIDTH,
    empty_lanes,
    load,
    load_row,
    nearest_levels,
    splat,
    staircase,
    store_row,
)

LOW, HIGH = -8, 7
_of_table = staircase([(low + high) / 2 for low, high in itertools.pairwise(IQ4)], IQ4)


@kernel
def _by_vectors(x: np.ndarray, levels: np.ndarray, values: np.ndarray) -> None:
    low, high = splat(ROUNDER + np.float32(LOW)), splat(ROUNDER + np.float32(HIGH))
    for j in range(len(x)):
        for at in range(0, LANES, WIDTH):
            store_row(levels, j, at, nearest_levels(load_row(x, j, at), low, high))
            store_row(values, j, at, _of_table(load_row(x, j, at)))


@kernel
def _by_scalars(x: np.ndarray, levels: np.ndarray, values: np.ndarray) -> None:
    for j in range(len(x)):
        for i in range(LANES):
            levels[j, i] = np.float32(level(x[j, i], np.int32(LOW), np.int32(HIGH)))
            values[j, i] = nearest_value(x[j, i])


def test_levels_of_any_bits_are_those_of_scalars() -> None:
    """Also of halves, of what is beyond 2^22, of infinities and of NaN."""
    rng = np.random.default_rng(0)
    wild = rng.integers(0, 2**32, (2000, LANES), dtype=np.uint32).view(np.float32)
    near = (rng.integers(-40, 40, (100, LANES)) / 4).astype(np.float32)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 2.0**22, 2.0**23, -(2.0**22), 1e30], np.float32)
    usual = rng.uniform(-130, 120, (200, LANES)).astype(np.float32)
    x = np.concatenate([wild, near, np.resize(edges, (1, LANES)), usual])
    vectors, scalars = ((np.empty_like(x), np.empty_like(x)) for _ in range(2))
    _by_vectors(x, *vectors)
    _by_scalars(x, *scalars)
    for found, wanted in zip(vectors, scalars, strict=True):
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("n_blocks", [1, 15, 16, 17, 63, 64, 100])
def test_blocks_are_columns(n_blocks: int) -> None:
    """Those past the last are zeros."""
    blocks = np.arange(n_blocks * 32, dtype=np.float32).reshape(n_blocks, 32)
    out = empty_lanes(32, LANES)
    for first in range(0, n_blocks, LANES):
        out[:] = np.nan
        load(blocks, first, out)
        wanted = np.zeros((LANES, 32), np.float32)
        wanted[: n_blocks - first] = blocks[first : first + LANES]
        np.testing.assert_array_equal(out.T, wanted)


def test_rows_begin_with_a_line_of_the_cache() -> None:
    for n_rows in range(1, 20):
        rows = empty_lanes(n_rows, WIDTH)
        assert rows.shape == (n_rows, WIDTH) and rows.ctypes.data % 64 == 0
