"""Products with weights that are read when they are needed, or kept if the model is small: what blocks are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Norm
from ..dtypes import Float32
from ..graph import Weight, WeightGraph
from ..tensor import TensorView
from .cores import by_rows, cut, each

# Of a piece of a product: weights that stay in cache between being widened and used, or, of kept weights, the work
# that pays for handing it to another core.
_PIECE_ELEMENTS = 3 << 17
_PIECE_PRODUCTS = 1 << 22
_PIECE_ROWS = 128
# A model that is no larger than this in float32 is kept.
KEEP_BYTES = 1 << 28


class Weights:
    """The operations of a graph on its weights. Subclasses change one of them: to watch it, or to get it wrong.

    A model of up to `keep_bytes` in float32 is kept between calls, so that it decodes fast. The weights of a larger
    one are streamed from the checkpoint each time, a piece at a time, and peak memory is that of the activations.
    """

    def __init__(self, graph: WeightGraph, *, keep_bytes: int = KEEP_BYTES) -> None:
        self.graph = graph
        self._kept: dict[int, Float32] = {}
        self.is_kept = 4 * graph.n_parameters <= keep_bytes

    def load(self, view: TensorView, start: int, stop: int) -> Float32:
        """Rows of a weight as float32."""
        if not self.is_kept:
            return view.rows(start, stop)
        if id(view) not in self._kept:
            self._kept[id(view)] = view.rows(0, view.n_rows)
        return self._kept[id(view)][start:stop]

    def vector(self, weight: Weight) -> Float32:
        """A weight of one row."""
        return self.load(weight.view, 0, 1)[0]

    def lookup(self, table: Weight, ids: np.ndarray) -> Float32:
        """Rows [n, H] of a table."""
        if self.is_kept:
            return self.load(table.view, 0, table.view.n_rows)[ids]
        tokens, places = np.unique(ids, return_inverse=True)
        # single rows: a 128,000-row table is never widened for a prompt
        return np.concatenate([table.view.rows(token, token + 1) for token in tokens.tolist()])[places]

    def linear(
        self,
        x: Float32,
        weight: Weight,
        bias: Weight | None = None,
        *,
        expert: int | None = None,
        tokens: NDArray[np.int64] | None = None,
    ) -> Float32:
        """x [n, in] times a matrix [out, in], or one of a stack [E, out, in], transposed: [n, out].

        `tokens` [n] says which of the batch's tokens the rows are, in ascending order, where they are not all of them.
        """
        view = weight.view
        count = view.n_rows if expert is None else view.shape[1]
        start = 0 if expert is None else expert * count
        out = np.empty((x.shape[0], count), np.float32)
        added = None if bias is None else self.vector(bias)

        def multiply(low: int, high: int) -> None:
            np.matmul(x, self.load(view, start + low, start + high).T, out=out[:, low:high])
            if added is not None:
                out[:, low:high] += added[low:high]

        step = _PIECE_PRODUCTS // x.size if self.is_kept else _PIECE_ELEMENTS // view.n_cols
        each(multiply, cut(count, max(_PIECE_ROWS, step)))
        return out

    def norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
        """The norm over the last axis, whatever it stands before or behind."""
        weight, epsilon = self.vector(gain), np.float32(norm.eps)
        out = np.empty_like(x)

        def apply(low: int, high: int) -> None:
            np.multiply(x[low:high], x[low:high], out=out[low:high])
            mean_square = np.mean(out[low:high], axis=-1, keepdims=True, dtype=np.float32)
            np.divide(x[low:high], np.sqrt(mean_square + epsilon), out=out[low:high])
            out[low:high] *= weight

        each(apply, by_rows(x))
        return out
