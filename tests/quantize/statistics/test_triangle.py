"""Second moments, packed: against the plain product."""

from __future__ import annotations

import numpy as np
import pytest
from lfm_convert.quantize.statistics.sums import squares
from lfm_convert.quantize.statistics.triangle import Triangle, n_packed, unpack


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 300])
def test_moments_are_the_mean_of_products(n: int) -> None:
    rng, triangle = np.random.default_rng(n), Triangle(n)
    x, shares = rng.standard_normal((50, n), np.float32), rng.random(50, np.float32)
    triangle.add(x[:20])
    triangle.add(x[20:], shares[20:])
    weights = np.concatenate([np.ones(20), shares[20:]])
    expected = (x.astype(np.float64) * weights[:, None]).T @ x / weights.sum()
    packed = triangle.mean()
    assert packed.shape == (n_packed(n),) and packed.dtype == np.float32
    assert np.allclose(unpack(packed, n), expected, rtol=1e-4, atol=1e-5)


def test_packed_by_hand() -> None:
    assert unpack(np.arange(1, 7, dtype=np.float32), 3).tolist() == [[1, 2, 3], [2, 4, 5], [3, 5, 6]]


def test_of_no_token_they_are_zeros() -> None:
    assert not Triangle(3).mean().any()


def test_squares_of_columns() -> None:
    x, shares = np.array([[1, 2], [3, 4]], np.float32), np.array([1, 0.5], np.float32)
    assert squares(x).tolist() == [10, 20]
    assert squares(x, shares).tolist() == [5.5, 12]
    assert squares(x[:0]).tolist() == [0, 0]
