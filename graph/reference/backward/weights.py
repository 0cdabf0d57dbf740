"""Products with transposed weights, and norms turned round: what pull-backs are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...blocks import Mixture, Norm
from ...dtypes import Float32
from ...graph import Layer, Weight
from ...tensor import TensorView
from ..cores import by_rows, cut, each
from ..feed_forward import Routing
from ..forward import Forward

# From the gradient by what a block gives to the gradient by what it takes, of the same tokens.
Pullback = Callable[[Float32], Float32]

# Of a matrix that is multiplied from the left: elements that are widened at once, and rows of the other factor that one
# core takes.
_WIDENED_ELEMENTS = 1 << 24
_LOADED_ROWS = 128
_TOKENS = 256


class BackwardWeights(Forward):
    """The operations of a graph on its weights, and each of them in reverse."""

    def pull(
        self,
        gradient: Float32,
        weight: Weight,
        *,
        expert: int | None = None,
        tokens: NDArray[np.int64] | None = None,
    ) -> Float32:
        """The reverse of `linear`: gradient [n, out] by what a matrix gave, times the matrix: [n, in]."""
        view = weight.view
        count = view.n_rows if expert is None else view.shape[1]
        start = 0 if expert is None else expert * count
        out = np.zeros((len(gradient), view.n_cols), np.float32)
        for low, high in cut(count, max(_LOADED_ROWS, _WIDENED_ELEMENTS // view.n_cols)):
            matrix = self._widened(view, start + low, start + high)

            def multiply(first: int, last: int, matrix: Float32 = matrix, low: int = low, high: int = high) -> None:
                out[first:last] += gradient[first:last, low:high] @ matrix

            each(multiply, cut(len(gradient), _TOKENS))
        return out

    def pull_norm(self, gradient: Float32, x: Float32, gain: Weight, norm: Norm) -> Float32:
        """The reverse of `norm` of x: the gradient by it."""
        weight, epsilon = self.vector(gain), np.float32(norm.eps)
        out = np.empty_like(x)

        def apply(low: int, high: int) -> None:
            piece, scaled = x[low:high], gradient[low:high] * weight
            mean_square = np.mean(piece * piece, axis=-1, keepdims=True, dtype=np.float32)
            inverse = np.reciprocal(np.sqrt(mean_square + epsilon))
            along = np.mean(scaled * piece, axis=-1, keepdims=True, dtype=np.float32)
            out[low:high] = scaled * inverse - piece * (along * inverse**3)

        each(apply, by_rows(x))
        return out

    def met_mixture(self, block: Mixture, layer: Layer, x: Float32, routing: Routing, gradient: Float32) -> None:
        """Called while a mixture is turned round, with its input and the gradient by its output; for who watches."""

    def met_probabilities(self, probabilities: Float32, scale: float) -> None:
        """Called with the distributions [n, V] that labels are drawn from, whose logits are scaled; for who watches."""

    def _widened(self, view: TensorView, start: int, stop: int) -> Float32:
        """Rows of a weight as float32, read by all cores."""
        if self.is_kept:
            return self.load(view, start, stop)
        found = np.empty((stop - start, view.n_cols), np.float32)

        def read(low: int, high: int) -> None:
            found[low:high] = view.rows(start + low, start + high)

        each(read, cut(len(found), _LOADED_ROWS))
        return found
