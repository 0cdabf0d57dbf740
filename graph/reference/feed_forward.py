"""Feed-forwards: one for all tokens, or a choice among experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..blocks import Activation, Dense, Mixture, Scoring
from ..dtypes import Float32
from ..graph import Layer
from ..roles import Role
from .activations import gated, sigmoid, softmax
from .cores import cut, each
from .state import Batch
from .weights import Weights


@dataclass(frozen=True)
class Routing:
    """Choice of a mixture. Shapes: both [tokens, top_k]; weights as they multiply the experts."""

    experts: np.ndarray
    weights: Float32


class RoutedWeights(Weights):
    """The choice of experts, which runtimes get wrong. `routings` are those of the last call, by layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.routings: dict[int, Routing] = {}

    def route(self, block: Mixture, layer: Layer, x: Float32) -> Routing:
        """Experts and weights of each token, chosen with the bias, weighted without."""
        scores = score(block, self.linear(x, layer.weights[Role.ROUTER]))
        return choose(block, self.biased(layer, scores), scores)

    def biased(self, layer: Layer, scores: Float32) -> Float32:
        """Scores as experts are ranked by them."""
        bias = layer.weights.get(Role.EXPERT_BIAS)
        return scores if bias is None else scores + self.vector(bias)


def score(block: Mixture, outputs: Float32) -> Float32:
    """Scores [tokens, E] of a router's outputs."""
    return sigmoid(outputs) if block.scoring is Scoring.SIGMOID else softmax(outputs)


def choose(block: Mixture, ranked: Float32, weighing: Float32) -> Routing:
    """The experts of the highest `ranked` scores [tokens, E], weighed by their `weighing` ones."""
    experts = np.argsort(-ranked, axis=1, kind="stable")[:, : block.top_k]
    weights = np.take_along_axis(weighing, experts, axis=1)
    if block.is_normalised:
        weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(block.sum_eps))
    return Routing(experts, weights * np.float32(block.scaling))


def dense(run: Weights, block: Dense, layer: Layer, x: Float32, batch: Batch) -> Float32:
    """down(activation(gate(x)) * up(x))."""
    gate, up = (run.linear(x, layer.weights[role]) for role in (Role.FFN_GATE, Role.FFN_UP))
    return run.linear(gated(block.activation, gate, up), layer.weights[Role.FFN_DOWN])


def mixture(run: RoutedWeights, block: Mixture, layer: Layer, x: Float32, batch: Batch) -> Float32:
    """Sum over the chosen experts; only those any token chose are read."""
    routing = run.routings[layer.index] = run.route(block, layer, x)
    used = np.unique(routing.experts).tolist()
    shares: dict[int, tuple[Any, Float32]] = {}

    def add(low: int, high: int) -> None:
        for i in range(low, high):
            token, slot = np.nonzero(routing.experts == used[i])
            expert = partial(run.linear, expert=used[i], tokens=token)
            chosen = x[token]
            gate, up = (expert(chosen, layer.weights[role]) for role in (Role.EXPERT_GATE, Role.EXPERT_UP))
            down = expert(gated(Activation.SILU, gate, up), layer.weights[Role.EXPERT_DOWN])
            shares[i] = token, down * routing.weights[token, slot, None]

    # Experts of a small model are too little work to be cut; those of a large one are cut, so as to be read once.
    if run.is_kept:
        each(add, cut(len(used), 1))
    else:
        add(0, len(used))
    out = np.zeros_like(x)
    for i in range(len(used)):  # in this order, whoever was first
        token, share = shares[i]
        out[token] += share
    return out
