"""What storing a weight in an encoding costs: the divergence that its error is predicted to make.

To second order the divergence of the model from itself with dW added to a weight W is half of dW's square under the Fisher
information, of which the diagonal is kept: the mean over tokens of (g_r x_c)², where g is the gradient of the loss of a
sampled label by the weight's outputs and x its input. It is taken for the product of two vectors a matrix,

    loss = 1/2 · sum over r, c of  g2_r · dW_rc² · x2_c  / tokens

with g2 the sum over tokens of g_r² and x2 the mean over those tokens of x_c², for each expert of a stack by itself. An
error that is weighed by x2 alone says little of the divergence.
Source: Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation" (why labels are sampled);
SqueezeLLM (the diagonal as a sensitivity of quantisation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import UsageError
from ...graph.graph import Weight
from ...graph.roles import Address
from ...graph.tensor import TensorView
from ...graph.units import format_size
from ..encoding import Encoding
from ..grids import passes

# Float32 bytes of the rows that are looked at together. What is summed with what follows from it, and so the last digit:
# it depends neither on the number of workers nor on the memory there is.
_RANGE_BYTES = 1 << 20
_TOGETHER = 128  # rows of the largest tile of any encoding
# The interpreter, what it imports and machine code, in bytes; and float32 arrays of the rows that a worker looks at.
_BASE_BYTES, _ARRAYS = 250_000_000, 16


class Sensitivities(Protocol):
    """What costs need of the statistics of a calibration. Shapes: columns [slices, cols], gradients [slices, rows]."""

    @property
    def n_tokens(self) -> int: ...

    def columns(self, address: Address) -> Float32 | None:
        """Mean squared input of each column, of the tokens that reached the slice."""

    def gradients(self, address: Address) -> Float32 | None:
        """Sum over tokens of the squared gradient by each row's output."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A weight, the encodings it could have, and what their encoders weigh its columns by [slices, cols], if they do.

    `address` is where the statistics have it: a head that is the token table has the table's. `gradients` [slices, rows]
    are in place of those, of a use that is stored apart.
    """

    address: Address
    view: TensorView
    encodings: tuple[Encoding, ...]
    importance: Float32 | None = None
    gradients: Float32 | None = None


def can_be_weighed(weight: Weight, statistics: Sensitivities) -> bool:
    """Whether the statistics know what errors of a weight cost."""
    return statistics.gradients(weight.address) is not None


def costs_bytes(weights: Iterable[Weight], jobs: int) -> int:
    """Bytes that so many workers hold at most, beside the files they map, while they measure what weights cost."""
    widest = max((each.view.n_cols for each in weights), default=0)
    return _BASE_BYTES + jobs * _ARRAYS * max(_RANGE_BYTES, 4 * _TOGETHER * widest)


def jobs_within(weights: Iterable[Weight], jobs: int, max_memory: int | None) -> int:
    """As many workers of these as a limit leaves. Raises: UsageError for one that one worker alone is beyond."""
    weights = list(weights)
    found = next((n for n in range(jobs, 0, -1) if max_memory is None or costs_bytes(weights, n) <= max_memory), None)
    if found is None:
        least = format_size(costs_bytes(weights, 1))
        raise UsageError(
            f"--max-memory {format_size(max_memory or 0)} is too little to measure what encodings cost: at least {least}"
        )
    return found


def losses(
    asked: Sequence[Asked],
    statistics: Sensitivities,
    *,
    jobs: int = 1,
    advance: Callable[[int], None] = lambda n_bytes: None,
) -> list[tuple[float, ...]]:
    """The loss of each encoding of each weight, in nats a token; infinite where a value does not fit one.

    Each row is read once for all encodings. `advance` is told the source bytes done.
    Raises: InputError for weights that cannot be read.
    """
    pieces = [piece for number, each in enumerate(asked) for piece in _pieces(number, each, statistics)]
    found = [np.zeros(len(each.encodings)) for each in asked]
    with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="cost") as pool:
        try:
            for piece, sums in zip(pieces, pool.map(_Piece.losses, pieces), strict=True):
                found[piece.number] += sums
                advance((piece.stop - piece.start) * piece.asked.view.row_nbytes)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [tuple((0.5 * sums / statistics.n_tokens).tolist()) for sums in found]


@dataclass(frozen=True)
class _Piece:
    """Rows [start, stop) of a weight, all of one slice, with the sensitivities of these rows and the slice's columns."""

    number: int
    asked: Asked
    start: int
    stop: int
    rows: Float32
    columns: Float32
    importance: Float32 | None

    def losses(self) -> np.ndarray:
        values = self.asked.view.rows(self.start, self.stop)
        return np.array([self._loss(values, encoding) for encoding in self.asked.encodings])

    def _loss(self, values: Float32, encoding: Encoding) -> float:
        if passes(self.asked.view, encoding):
            return 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            weighed = self.importance if encoding.weighs_columns else None
            errors = encoding.decode(*encoding.encode(values, weighed)) - values
            squares = np.square(errors, dtype=np.float64)
            loss = float(((squares * self.columns).sum(axis=1) * self.rows.astype(np.float64)).sum())
        return loss if np.isfinite(loss) else np.inf


def _pieces(number: int, asked: Asked, statistics: Sensitivities) -> Iterator[_Piece]:
    view = asked.view
    gradients = statistics.gradients(asked.address) if asked.gradients is None else asked.gradients
    columns = statistics.columns(asked.address)
    if gradients is None:
        raise ValueError(f"no gradients of '{view.name}' are known")
    n_slices = len(gradients)
    if columns is None:  # a table that is only looked up: a row is multiplied by nothing
        columns = np.ones((n_slices, view.n_cols), np.float32)
    height = view.n_rows // n_slices
    step = max(_TOGETHER, _RANGE_BYTES // (4 * view.n_cols) // _TOGETHER * _TOGETHER)
    for which in range(n_slices):
        for start in range(0, height, step):
            stop, first = min(start + step, height), which * height
            yield _Piece(
                number, asked, first + start, first + stop,
                gradients[which, start:stop], columns[which],
                None if asked.importance is None else asked.importance[which % len(asked.importance)],
            )  # fmt: skip
