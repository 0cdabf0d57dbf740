"""Layers of a graph with their pull-backs, and the loss at their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blocks import Attention, Branch, Dense, Mixture, ShortConv
from ...dtypes import Float32
from ...graph import Layer
from ...roles import Role
from ..cores import by_rows, each
from ..state import Batch
from .attention import attention
from .feed_forward import dense, mixture
from .short_conv import short_conv
from .weights import BackwardWeights, Pullback

_BLOCKS: Mapping[type, Callable[..., tuple[Float32, Pullback]]] = {
    ShortConv: short_conv,
    Attention: attention,
    Dense: dense,
    Mixture: mixture,
}


class Backward(BackwardWeights):
    """Runs a weight graph layer by layer, and turns each layer round."""

    def turn_layer(self, layer: Layer, hidden: Float32, batch: Batch) -> tuple[Float32, Pullback]:
        """`run_layer` of sequences from their start, and its pull-back."""
        pulls: list[Pullback] = []
        for branch in layer.branches:
            out, pull = self._turn_branch(branch, layer, hidden, batch)
            hidden = hidden + out
            pulls.append(pull)

        def pull_all(gradient: Float32) -> Float32:
            while pulls:  # what a branch has kept goes with it
                gradient = gradient + pulls.pop()(gradient)
            return gradient

        return hidden, pull_all

    def turn_end(self, hidden: Float32, uniform: NDArray[np.float64]) -> tuple[NDArray[np.int64], Float32]:
        """The loss after the last layer's rows [n, H]: minus the logarithm of the probability of one label a row.

        Labels are drawn from the model's own distribution by `uniform` [n], each from 0 to 1. Returns them, and the
        gradient by the rows. All logits of the rows are in memory at once.
        """
        states = self.finish(hidden)
        probabilities = _softmax(self.head(states))
        labels = np.array([_draw(row, u) for row, u in zip(probabilities, uniform, strict=True)], np.int64)
        scale = self.graph.config.logit_scale
        self.met_probabilities(probabilities, scale)
        probabilities[np.arange(len(labels)), labels] -= 1
        if scale != 1:
            probabilities *= np.float32(scale)
        by_states = self.pull(probabilities, self.graph.top.get(Role.LM_HEAD, self.graph.top[Role.EMBED]))
        by_hidden = self.pull_norm(by_states, hidden, self.graph.top[Role.FINAL_NORM], self.graph.config.final_norm)
        return labels, by_hidden

    def _turn_branch(self, branch: Branch, layer: Layer, hidden: Float32, batch: Batch) -> tuple[Float32, Pullback]:
        before, after = branch.norm, branch.post_norm
        normed = self.norm(hidden, layer.weights[branch.norm_role], before) if before else hidden
        given, pull_block = _BLOCKS[type(branch.block)](self, branch.block, layer, normed, batch)
        out = self.norm(given, layer.weights[branch.post_norm_role], after) if after else given

        def pull(gradient: Float32) -> Float32:
            if branch.scale != 1:
                gradient = gradient * np.float32(branch.scale)
            if after:
                gradient = self.pull_norm(gradient, given, layer.weights[branch.post_norm_role], after)
            gradient = pull_block(gradient)
            return self.pull_norm(gradient, hidden, layer.weights[branch.norm_role], before) if before else gradient

        return (out if branch.scale == 1 else out * np.float32(branch.scale)), pull


def _softmax(logits: Float32) -> Float32:
    """Over the last axis, in place."""

    def apply(low: int, high: int) -> None:
        piece = logits[low:high]
        piece -= piece.max(axis=-1, keepdims=True)
        np.exp(piece, out=piece)
        piece /= piece.sum(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)

    each(apply, by_rows(logits))
    return logits


def _draw(probabilities: NDArray[Any], uniform: float) -> int:
    """The outcome at which the probabilities before it and its own exceed a share of them all."""
    upto = np.cumsum(probabilities, dtype=np.float64)
    return min(int(np.searchsorted(upto, uniform * upto[-1], side="right")), len(upto) - 1)
