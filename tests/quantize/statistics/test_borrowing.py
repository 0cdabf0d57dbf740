"""Which tokens rare experts borrow: only theirs, the nearest ones, by shares of at most one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.blocks import Mixture
from lfm_convert.graph.reference.feed_forward import choose
from lfm_convert.quantize.statistics.borrowing import Loan, borrow


def block(top_k: int = 2, **fields: object) -> Mixture:
    return Mixture(n_experts=4, top_k=top_k, size=8, **fields)  # type: ignore[arg-type]


SCORES = np.array(
    [
        [0.9, 0.8, 0.1, 0.0],
        [0.9, 0.7, 0.6, 0.0],
        [0.8, 0.9, 0.3, 0.0],
        [0.1, 0.9, 0.8, 0.0],
    ],
    np.float32,
)


def test_by_hand() -> None:
    """Of expert 2, which token 3 chose: tokens 1 (0.1 behind) and 2 (0.5 behind), and token 1 before token 2."""
    loans = borrow(block(), SCORES, SCORES, least=3)
    assert set(loans) == {2, 3}
    assert loans[2].tokens.tolist() == [1, 2]
    assert np.allclose(loans[2].shares, [0.6 / 0.7, 0.3 / 0.8])
    assert np.allclose(loans[2].weights, [0.6 / (0.9 + 0.6), 0.3 / (0.9 + 0.3)], rtol=1e-5)
    assert set(borrow(block(), SCORES, SCORES, least=2)) == {2, 3}
    assert borrow(block(), SCORES, SCORES, least=2)[2].tokens.tolist() == [1]


def test_an_expert_that_nobody_scores_still_gets_tokens() -> None:
    (loan,) = (loans[3] for loans in [borrow(block(), SCORES, SCORES, least=2)])
    assert len(loan.tokens) == 2 and (loan.shares > 0).all() and (loan.weights == 0).all()


def test_chosen_by_one_thing_and_weighed_by_another() -> None:
    """The bias ranks: an expert that lies behind by it and scores higher counts as one, not more."""
    ranked = SCORES + np.array([0, 0, -0.5, 0], np.float32)
    scores = SCORES + np.array([0, 0, 0.4, 0], np.float32)
    assert (borrow(block(), ranked, scores, least=4)[2].shares <= 1).all()


def test_with_all_experts_chosen_nobody_borrows() -> None:
    assert borrow(block(top_k=4), SCORES, SCORES, least=100) == {}


def test_a_range_of_a_loan() -> None:
    loan = Loan(np.array([2, 5, 9]), np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 2, 3], np.float32))
    part = loan.within(3, 9)
    assert part.tokens.tolist() == [2] and part.weights.tolist() == [2]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.booleans(), st.integers(0, 2**32 - 1))
def test_never_more_than_needed_and_never_their_own(
    n_tokens: int, top_k: int, least: int, is_normalised: bool, seed: int
) -> None:
    scores = np.random.default_rng(seed).random((n_tokens, 4), np.float32)
    mixture = block(top_k, is_normalised=is_normalised)
    chosen = choose(mixture, scores, scores).experts
    counts = np.bincount(chosen.ravel(), minlength=4)
    loans = borrow(mixture, scores, scores, least=least)
    for which in range(4):
        needed = min(max(0, least - counts[which]), n_tokens - counts[which])
        found = loans[which].tokens.tolist() if which in loans else []
        assert len(found) == len(set(found)) == needed and found == sorted(found)
        assert not any(which in chosen[token] for token in found)
