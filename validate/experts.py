"""Whether a runtime sends tokens to the experts that the model would: the sets chosen, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..graph.dtypes import Float32
from ..graph.graph import Layer, WeightGraph
from ..graph.reference.forward import Forward

# The experts [n, top_k] of each layer that has a router, in any order within a token.
Routed = Mapping[int, NDArray[np.int64]]


@dataclass(frozen=True)
class LayerExperts:
    """One layer: the share of the artifact's chosen experts that the model chooses too.

    `execution` is against the forward of the artifact's own weights, `quality` against the checkpoint; both are of
    `n_choices`.
    """

    layer: int
    execution: float
    quality: float
    n_choices: int = 0


class Ranked(Forward):
    """Keeps the scores [tokens, E] by which each layer ranked its experts in the last call."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph)
        self.ranked: dict[int, Float32] = {}

    def biased(self, layer: Layer, scores: Float32) -> Float32:
        found = self.ranked[layer.index] = super().biased(layer, scores)
        return found


def routed(forward: Forward) -> Routed:
    """What a forward pass chose in its last call."""
    return {layer: np.asarray(routing.experts, np.int64) for layer, routing in forward.routings.items()}


def agreement(first: Routed, second: Mapping[int, ArrayLike]) -> dict[int, float]:
    """The mean share of experts that two runs have in common, by layer.

    Raises: ValueError if they are not about the same layers and tokens.
    """
    if first.keys() != second.keys():
        raise ValueError(f"experts of layers {sorted(second)}: expected {sorted(first)}")
    found = {}
    for layer, chosen in first.items():
        others = np.asarray(second[layer], np.int64)
        if others.shape != chosen.shape:
            raise ValueError(f"layer {layer}: experts of shape {others.shape}: expected {chosen.shape}")
        found[layer] = float((chosen[:, :, None] == others[:, None, :]).any(axis=2).mean())
    return found


def compare_experts(seen: Mapping[int, ArrayLike] | None, own: Routed, checkpoint: Routed) -> Sequence[LayerExperts]:
    """Every layer's agreement; empty if the runtime does not show its choices."""
    if seen is None:
        return ()
    execution, quality = agreement(own, seen), agreement(checkpoint, seen)
    return tuple(LayerExperts(layer, execution[layer], quality[layer], own[layer].size) for layer in execution)
