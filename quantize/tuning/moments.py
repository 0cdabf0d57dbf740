"""Second moments of a matrix's inputs over a text: those it will have, and what it would have had in float.

Inputs are those of the quantised prefix; D is the mean of (float input - quantised input) times the quantised input.
Only W D is asked for: of a matrix with far fewer rows than columns it is summed itself, which is less work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...graph.dtypes import Float32
from ...graph.tensor import Shape

# Added to the diagonal, of its mean. Source: GPTQ (arXiv 2210.17323), `percdamp`.
_DAMPING = np.float32(0.01)
# Columns that are solved, or whose codes are chosen, together.
WIDTH = 128
# Columns of moments that are summed at a time.
_COLUMNS = 512


def products_are_less(shape: Shape) -> bool:
    """Whether summing the drift of products of a matrix [rows, columns] is less work than that of its inputs."""
    return 2 * shape[-2] < shape[-1]


class Moments:
    """Sums over tokens of one matrix, or of one expert of a stack."""

    def __init__(self, n_cols: int, sums: Float32 | None = None, *, n_rows: int | None = None) -> None:
        """`sums` [2, n_cols, n_cols] are zeros that may lie on the disk; without them they are held. With `n_rows` the
        drift is that of the products of so many rows.
        """
        self.n_tokens, self.is_of_products = 0, n_rows is not None
        # Of squares, of blocks of columns those above the diagonal: the rest is the same.
        self._squares: Float32
        self._drift: Float32
        if n_rows is None:
            self._squares, self._drift = np.zeros((2, n_cols, n_cols), np.float32) if sums is None else sums
        else:
            self._squares = np.zeros((n_cols, n_cols), np.float32)
            self._drift = np.zeros((n_rows, n_cols), np.float32)
        # Sum over tokens of what the products x_i x_j, i ≠ j, have of squares: how far their mean may be off.
        self._spread = 0.0

    @property
    def n_cols(self) -> int:
        return len(self._squares)

    @property
    def mean_squares(self) -> Float32:
        """The mean square of each column [n_cols]."""
        found: Float32 = np.diagonal(self._squares) / np.float32(max(self.n_tokens, 1))
        return found

    def add(self, quantised: Float32, floats: Float32, drifted: Float32 | None = None) -> None:
        """Inputs [n, n_cols] of both streams, token by token, and what rows give of their difference, if that is summed."""
        for columns in self.columns():
            self.add_columns(columns, quantised, floats, drifted)
        self.count(quantised)

    def add_columns(self, columns: slice, quantised: Float32, floats: Float32, drifted: Float32 | None = None) -> None:
        """Inputs, as far as some of the `columns` go: several workers add some each, and one of them counts."""
        some = quantised[:, columns]
        self._squares[columns, columns.start :] += some.T @ quantised[:, columns.start :]
        if drifted is None:
            self._drift[columns] += (floats[:, columns] - some).T @ quantised
        else:
            self._drift[:, columns] += drifted.T @ some

    def count(self, quantised: Float32) -> None:
        """Counts the tokens of inputs whose columns are all added."""
        self.n_tokens += len(quantised)
        squared = np.square(quantised)
        of_rows, of_squares = squared.sum(axis=1, dtype=np.float64), np.einsum("ij,ij->i", squared, squared)
        self._spread += float((np.square(of_rows) - of_squares).sum())

    def columns(self) -> list[slice]:
        """Runs of columns that are added by themselves."""
        return [slice(start, min(start + _COLUMNS, self.n_cols)) for start in range(0, self.n_cols, _COLUMNS)]

    def add_sums(self, other: Moments) -> None:
        """The sums of another: what all experts of a layer have met."""
        self.n_tokens += other.n_tokens
        self._squares += other._squares
        self._drift += other._drift
        self._spread += other._spread

    def settled(self, among: Settled | None = None) -> Settled:
        """What is to be relied on of them: of few tokens less, and where nothing was seen a diagonal.

        Moments of few tokens hide errors in directions that these tokens do not show. They are drawn toward those of all
        experts, `among`, or to their diagonal, as far as their own spread says that they are chance.
        Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
        """
        n = np.float32(max(self.n_tokens, 1))
        squares = np.array(self._squares)
        squares /= n
        for columns in self.columns():
            squares[columns.start :, columns] = squares[columns, columns.start :].T
        diagonal = np.diagonal(squares).copy()
        rest = _sum_of_squares(squares) - float(np.square(diagonal, dtype=np.float64).sum())
        distance = rest if among is None else _sum_of_squares(squares - among.squares)
        chance = max(self._spread / self.n_tokens - rest, 0.0) / self.n_tokens if self.n_tokens else 0.0
        share = 1.0 if self.n_tokens < 2 or distance == 0 else min(1.0, chance / distance)
        squares *= np.float32(1 - share)
        if among is None:
            np.fill_diagonal(squares, diagonal)
        else:
            squares += among.squares * np.float32(share)
        usual = np.float32(np.diagonal(squares).mean())
        squares[np.diag_indices(len(squares))] += _DAMPING * usual if usual > 0 else np.float32(1)
        drift = np.array(self._drift)
        drift *= np.float32((1 - share) / n)
        return Settled(squares, drift, share, self.is_of_products)


def shared_with_rows(settled: Settled) -> Settled:
    """Moments of a head whose rows are also looked up as embeddings, where all columns count alike: both uses alike."""
    squares = settled.squares.copy()
    squares[np.diag_indices(len(squares))] += np.diagonal(squares).mean()
    return replace(settled, squares=squares)


def _sum_of_squares(values: Float32) -> float:
    return float(np.einsum("ij,ij->", values, values, dtype=np.float64))


@dataclass(frozen=True)
class Settled:
    """Moments that can be solved for; `share` is how much of them was left to the target.

    Shapes: squares [n_cols, n_cols]; drift the same, or of products [n_rows, n_cols].
    """

    squares: Float32
    drift: Float32
    share: float
    is_of_products: bool = False

    def drift_of(self, rows: Float32, start: int) -> Float32:
        """Rows [n, n_cols], of all from `start` on, times the drift."""
        found: Float32 = self.drift[start : start + len(rows)] if self.is_of_products else rows @ self.drift
        return found


@dataclass(frozen=True)
class Solver:
    """A positive matrix as feedback · diag(pivots) · feedbackᵀ, its rows and columns in an order of falling diagonal.

    Shapes: order and pivots [n_cols]; feedback [n_cols, n_cols], upper triangular with ones on its diagonal.
    """

    order: np.ndarray
    feedback: Float32
    pivots: Float32

    def divide(self, rows: Float32) -> Float32:
        """Rows [n, n_cols], in the matrix's own order of columns, times the inverse."""
        n_cols, x = rows.shape[1], np.ascontiguousarray(rows[:, self.order])
        blocks = [slice(start, min(start + WIDTH, n_cols)) for start in range(0, n_cols, WIDTH)]
        inverses = [np.linalg.inv(self.feedback[block, block]).astype(np.float32) for block in blocks]
        # x · feedback⁻ᵀ, from the last column to the first, over the pivots, then · feedback⁻¹, from the first to the last
        for block, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
            x[:, block] -= x[:, block.stop :] @ self.feedback[block, block.stop :].T
            x[:, block] = x[:, block] @ inverse.T
        x /= self.pivots
        for block, inverse in zip(blocks, inverses, strict=True):
            x[:, block] -= x[:, : block.start] @ self.feedback[: block.start, block]
            x[:, block] = x[:, block] @ inverse
        found = np.empty_like(x)
        found[:, self.order] = x
        return found


def solver(squares: Float32) -> Solver:
    """The solver of moments; where rounding has made them not positive, with as much on their diagonal as it takes."""
    order = np.argsort(-np.diagonal(squares), kind="stable")
    flipped = squares[np.ix_(order[::-1], order[::-1])]
    more = np.float32(np.diagonal(squares).mean()) * _DAMPING
    while True:
        try:
            lower = np.linalg.cholesky(flipped)
            break
        except np.linalg.LinAlgError:
            flipped[np.diag_indices(len(flipped))] += more
            more *= np.float32(10)
    del flipped
    feedback = np.ascontiguousarray(lower[::-1, ::-1])
    diagonal = np.diagonal(feedback).copy()
    feedback /= diagonal
    return Solver(order, feedback, np.square(diagonal))
