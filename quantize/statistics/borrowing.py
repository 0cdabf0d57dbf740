"""What experts that few tokens chose are measured on: tokens that were nearest to choosing them.

Moments of a few tokens know a few directions, and no token at all knows none, but an expert that this text left out
is not an expert without use. One with fewer tokens than its matrix has columns borrows the missing ones: those of the
text that ranked it next, by how far it stayed behind the last expert they chose. Each counts by a share: how high it
scored the expert, compared with that last one, and at most one. Gradients are those that the expert would have had in
the place of the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...graph.blocks import Mixture
from ...graph.dtypes import Float32

# So that even a token that scored an expert by nothing counts, where nobody scored it by more.
_LEAST_SHARE = 2.0**-20


@dataclass(frozen=True)
class Loan:
    """Tokens in ascending order that one expert borrows. Shapes: all [n].

    `shares` are what each counts, `weights` what the expert's output would be multiplied with.
    """

    tokens: NDArray[np.int64]
    shares: Float32
    weights: Float32

    def within(self, start: int, stop: int) -> Loan:
        """Those of a range of tokens, counted from its start."""
        low, high = np.searchsorted(self.tokens, (start, stop))
        return Loan(self.tokens[low:high] - start, self.shares[low:high], self.weights[low:high])


def borrow(block: Mixture, ranked: Float32, scores: Float32, *, least: int) -> dict[int, Loan]:
    """By expert, what those with fewer than `least` tokens borrow.

    Shapes: `ranked`, by which experts are chosen, and `scores`, by which they are weighed, are [tokens, experts].
    """
    order = np.argsort(-ranked, axis=1, kind="stable")[:, : block.top_k]
    chosen = np.zeros(ranked.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    last = order[:, -1:]
    behind = np.take_along_axis(ranked, last, axis=1) - ranked
    last_scores = np.take_along_axis(scores, last, axis=1)[:, 0]
    totals = np.where(chosen, scores, np.float32(0)).sum(axis=1) - last_scores
    counts = chosen.sum(axis=0)
    loans = {}
    for which in np.flatnonzero(counts < least).tolist():
        others = np.flatnonzero(~chosen[:, which])
        nearest = others[np.argsort(behind[others, which], kind="stable")[: least - int(counts[which])]]
        tokens = np.sort(nearest)
        if len(tokens):
            own, theirs = scores[tokens, which], last_scores[tokens]
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = np.where(theirs > 0, own / theirs, np.float32(1))
            weights = own / (totals[tokens] + own + np.float32(block.sum_eps)) if block.is_normalised else own
            loans[which] = Loan(
                tokens,
                np.clip(shares, _LEAST_SHARE, 1).astype(np.float32),
                (weights * np.float32(block.scaling)).astype(np.float32),
            )
    return loans
