"""The model's two passes, watched: what every matrix is multiplied with, and how much the loss minds what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...graph.blocks import Mixture
from ...graph.dtypes import Float32
from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.reference.backward.feed_forward import one_expert
from ...graph.reference.backward.run import Backward
from ...graph.reference.feed_forward import Routing
from ...graph.roles import Address, Role
from .borrowing import Loan, borrow
from .inputs import input_of
from .sums import Float64, SquareSums
from .triangle import Triangle


def n_slices(weight: Weight) -> int:
    """Experts of a stack, else one."""
    return weight.shape[0] if len(weight.shape) == 3 else 1


class Collector(Backward):
    """Sums over tokens. Inputs and gradients of tokens that reach a matrix are in `inputs` and `gradients`; those of
    tokens that an expert borrows are apart, in `borrowed_inputs` and `borrowed_gradients`. Moments hold both.

    Nothing is noted but between `watch` and `rest`, so that the first pass only runs.
    """

    def __init__(self, graph: WeightGraph, *, with_moments: bool) -> None:
        super().__init__(graph)
        self.inputs, self.borrowed_inputs = SquareSums(), SquareSums()
        self.gradients, self.borrowed_gradients = SquareSums(), SquareSums()
        self.lookups: Float64 | None = None  # what a tied table's rows have of being looked up
        self.loans: dict[int, dict[int, Loan]] = {}
        self.moments: dict[Address, list[Triangle | None]] = {}
        self._with_moments = with_moments
        self._is_watching = False
        self._shares: Float32 | None = None
        self._start = 0
        self._scores: list[tuple[Float32, Float32]] = []
        top = graph.top
        self.head_weight = top.get(Role.LM_HEAD, top[Role.EMBED])

    def watch(self, start: int) -> None:
        """From now on what is multiplied is noted; rows are the text's tokens from `start` on."""
        self._is_watching, self._start = True, start

    def rest(self) -> None:
        self._is_watching = False

    def lend(self, layer: Layer) -> None:
        """After a layer has run on all tokens: decides which of them its rare experts borrow."""
        scores, self._scores = self._scores, []
        block = layer.feed_forward
        if isinstance(block, Mixture):
            ranked, weighing = (np.concatenate(each) for each in zip(*scores, strict=True))
            self.loans[layer.index] = borrow(block, ranked, weighing, least=layer.weights[Role.EXPERT_GATE].shape[-1])

    def biased(self, layer: Layer, scores: Float32) -> Float32:
        ranked = super().biased(layer, scores)
        if not self._is_watching:
            self._scores.append((ranked, scores))
        return ranked

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        if self._is_watching and input_of(weight.address) == weight.address:
            self._note(weight, x, rows.get("expert") or 0)
        return super().linear(x, weight, bias, **rows)

    def pull(self, gradient: Float32, weight: Weight, **rows: Any) -> Float32:
        if self._is_watching and weight.layer is not None:
            sums = self.gradients if self._shares is None else self.borrowed_gradients
            sums.add(weight.address, n_slices(weight), rows.get("expert") or 0, gradient, self._shares)
        return super().pull(gradient, weight, **rows)

    def met_probabilities(self, probabilities: Float32, scale: float) -> None:
        """Of the head's rows the mean over all labels is known: of softmax less one label p - p², no need to draw it."""
        total = self._gradients_of(self.head_weight)
        for low in range(0, len(probabilities), 64):
            piece = probabilities[low : low + 64]
            total += (piece - piece * piece).sum(axis=0, dtype=np.float64) * scale**2

    def met_embedded(self, ids: np.ndarray, gradient: Float32) -> None:
        """Adds what the loss minds of looked up rows [tokens, H]; of a tied table beside what it minds of the head's.

        A matrix has the square of a row's gradient times that of a column's input, and a table has neither alone: its
        rows get the mean over columns, and columns the sum over rows.
        """
        table = self.graph.top[Role.EMBED]
        by_row = np.zeros(table.shape[0])
        np.add.at(by_row, ids, np.square(gradient, dtype=np.float64).mean(axis=1))
        if self.head_weight is table:  # as a matrix whose columns are those of the head
            by_row /= max(float(self.mean_squares(table.address).mean()), _TINY)
            self.lookups = by_row if self.lookups is None else self.lookups + by_row
        else:
            self.inputs.add(table.address, 1, 0, gradient)
        self._gradients_of(table)[...] += by_row

    def met_mixture(self, block: Mixture, layer: Layer, x: Float32, routing: Routing, gradient: Float32) -> None:
        for which, loan in self.loans[layer.index].items() if self._is_watching else ():
            part = loan.within(self._start, self._start + len(x))
            if len(part.tokens):
                self._shares = part.shares
                _, pull = one_expert(self, layer, which, x[part.tokens], part.tokens)
                pull(gradient[part.tokens] * part.weights[:, None])
                self._shares = None

    def mean_squares(self, address: Address) -> Float64:
        """Of the inputs of a matrix [slices, columns], borrowed ones among them; of a table alone one on average."""
        address = input_of(address)
        own, borrowed = self.inputs, self.borrowed_inputs
        sums = own.sums[address] + borrowed.sums.get(address, 0)
        if address == self.graph.top[Role.EMBED].address != self.head_weight.address:
            return sums / max(sums.mean(), _TINY)
        return sums / np.maximum(own.tokens[address] + borrowed.tokens.get(address, 0), _TINY)[:, None]

    def squared_gradients(self, address: Address) -> Float64:
        """Sums over tokens of the squared gradients by what a matrix gives [slices, rows].

        Of an expert that borrowed, the mean over its own tokens and the borrowed ones, times the number of its own, or
        one where it has none.
        """
        own, borrowed = self.gradients, self.borrowed_gradients
        if address not in borrowed.sums:
            return own.sums[address]
        n_own, n_borrowed = own.tokens[address], borrowed.tokens[address]
        mean = (own.sums[address] + borrowed.sums[address]) / np.maximum(n_own + n_borrowed, _TINY)[:, None]
        return mean * np.maximum(n_own, 1)[:, None]

    def taken_moments(self) -> Mapping[Address, list[Triangle | None]]:
        """The moments noted since the last time, which are let go of."""
        found, self.moments = self.moments, {}
        return found

    def _note(self, weight: Weight, x: Float32, which: int) -> None:
        sums = self.inputs if self._shares is None else self.borrowed_inputs
        sums.add(weight.address, n_slices(weight), which, x, self._shares)
        if self._with_moments:
            slices = self.moments.setdefault(weight.address, [None] * n_slices(weight))
            kept = slices[which] = slices[which] or Triangle(weight.shape[-1])
            kept.add(x, self._shares)

    def _gradients_of(self, weight: Weight) -> Float64:
        """The sums [rows] of a table or head, which no `pull` adds to."""
        return self.gradients.sums.setdefault(weight.address, np.zeros((1, weight.shape[0])))[0]


_TINY = np.finfo(np.float64).tiny
