"""Rows of queries and keys in the order in which llama.cpp turns them, and back."""

from __future__ import annotations

import numpy as np
import pytest
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.tensor import Arrays, ArrayTensor, TensorView
from lfm_convert.targets.gguf.rows import as_halves, as_pairs, paired_rows

# Of a head of eight rows: 0 turns with 4, 1 with 5, ….
PAIRS = [0, 4, 1, 5, 2, 6, 3, 7]


def matrix(n_rows: int, n_cols: int = 3) -> Float32:
    return np.arange(n_rows * n_cols, dtype=np.float32).reshape(n_rows, n_cols)


class Packed(ArrayTensor):
    """A tensor whose rows have parts: a code and a scale each."""

    stored_as = "Q8_0"

    def stored_rows(self, start: int, stop: int) -> Arrays:
        return np.arange(start, stop), np.arange(start, stop) * 10.0


def test_a_head_by_hand() -> None:
    found = as_pairs(ArrayTensor("q", matrix(16)), 2)
    order = [*PAIRS, *(8 + row for row in PAIRS)]
    assert np.array_equal(found.read(), matrix(16)[order])
    assert np.array_equal(paired_rows(matrix(16), 2), matrix(16)[order])
    bias = as_pairs(ArrayTensor("q.bias", np.arange(16, dtype=np.float32)), 2)
    assert np.array_equal(bias.read(), np.array(order, np.float32))


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (3, 4), (5, 13), (8, 8), (15, 16)])
def test_any_range_is_that_of_the_whole(start: int, stop: int) -> None:
    for view in (as_pairs(ArrayTensor("q", matrix(16)), 2), as_halves(ArrayTensor("q", matrix(16)), 4)):
        assert np.array_equal(view.rows(start, stop), view.read()[start:stop])


def test_there_and_back() -> None:
    base = ArrayTensor("q", matrix(24))
    assert as_halves(as_pairs(base, 3), 3) is base
    kept = ArrayTensor("q", as_pairs(base, 3).read())
    assert np.array_equal(as_halves(kept, 3).read(), matrix(24))


def test_packed_rows_move_whole() -> None:
    view: TensorView = as_pairs(Packed("q", matrix(8)), 1)
    codes, scales = view.stored_rows(2, 6)
    assert view.stored_as == "Q8_0"
    assert codes.tolist() == PAIRS[2:6] and scales.tolist() == [10.0 * row for row in PAIRS[2:6]]
