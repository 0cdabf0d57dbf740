"""The knapsack, against all packings there are, and against what simpler rules pack."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.quantize.allotment import solve as solver
from lfm_convert.quantize.allotment.solve import Group, least_bytes, solve, total

CHOICES = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=4)
GROUPS = st.lists(CHOICES.map(lambda pairs: Group(*map(tuple, zip(*pairs, strict=True)))), min_size=1, max_size=6)


def _best_of_all(groups: list[Group], max_bytes: int) -> float:
    packings = itertools.product(*(range(len(group.sizes)) for group in groups))
    totals = (total(groups, packed) for packed in packings)
    return min((loss for n_bytes, loss in totals if n_bytes <= max_bytes), default=math.inf)


@given(groups=GROUPS, room=st.integers(0, 120))
def test_nothing_that_fits_is_better(groups: list[Group], room: int) -> None:
    budget = least_bytes(groups) + room
    n_bytes, loss = total(groups, solve(groups, budget))
    assert n_bytes <= budget
    assert loss == pytest.approx(_best_of_all(groups, budget), rel=1e-9, abs=1e-9)


def _model(n_groups: int, seed: int) -> list[Group]:
    """As of a model: matrices of a few sizes, whose losses differ by orders of magnitude and fall fourfold a bit."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5])
    groups = []
    for n_weights, scale in zip(
        rng.choice([2**20, 2**22, 2**23], n_groups), 10 ** rng.normal(size=n_groups), strict=True
    ):
        losses = scale * 4.0**-bits * rng.uniform(0.9, 1.1, len(bits))
        groups.append(Group(tuple((bits * n_weights / 8).astype(int).tolist()), tuple(losses.tolist())))
    return groups


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_a_model_is_packed_within_a_thousandth_and_better_than_uniformly_or_by_chance(share: float) -> None:
    groups = _model(200, seed=3)
    most = sum(max(group.sizes) for group in groups)
    budget = int(least_bytes(groups) + share * (most - least_bytes(groups)))
    n_bytes, loss = total(groups, solve(groups, budget))
    assert 0.999 * budget < n_bytes <= budget
    uniform = [total(groups, [i] * len(groups)) for i in range(7)]
    assert loss < min(each for size, each in uniform if size <= budget)
    rng = np.random.default_rng(5)
    for _ in range(20):
        packed = rng.integers(0, 7, len(groups)).tolist()
        while total(groups, packed)[0] > budget:
            packed[int(rng.integers(len(groups)))] = 0
        assert loss < total(groups, packed)[1]


def test_losses_turned_over_pack_worse_than_all_alike() -> None:
    groups = _model(100, seed=4)
    ranks = np.argsort(np.argsort([group.losses[0] for group in groups]))
    by_rank = sorted(group.losses[0] for group in groups)[::-1]
    turned = [
        Group(group.sizes, tuple(loss * by_rank[rank] / group.losses[0] for loss in group.losses))
        for group, rank in zip(groups, ranks, strict=True)
    ]
    budget, uniform = total(groups, [3] * len(groups))
    assert total(groups, solve(groups, budget))[1] < uniform < total(groups, solve(turned, budget))[1]


def test_many_packings_are_thinned_and_still_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = _model(60, seed=6)
    budget = int(1.4 * least_bytes(groups))
    exact = total(groups, solve(groups, budget))[1]
    monkeypatch.setattr(solver, "MOST", 64)
    n_bytes, loss = total(groups, solve(groups, budget))
    assert n_bytes <= budget
    assert exact <= loss < 1.02 * exact


def test_the_same_each_time_and_in_any_order() -> None:
    groups = _model(40, seed=7)
    budget = int(1.5 * least_bytes(groups))
    packed = solve(groups, budget)
    assert packed == solve(groups, budget)
    assert tuple(reversed(packed)) == solve(groups[::-1], budget)


def test_no_room_is_said() -> None:
    with pytest.raises(ValueError, match="at least 7 bytes"):
        solve([Group((7, 9), (1.0, 0.5))], 6)
