"""Feed-forwards, turned round: one for all tokens, or a choice among experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...blocks import Activation, Dense, Mixture, Scoring
from ...dtypes import Float32
from ...graph import Layer
from ...roles import Role
from ..activations import gated, slopes
from ..cores import by_rows, cut, each
from ..feed_forward import Routing, choose, score
from ..state import Batch
from .weights import BackwardWeights, Pullback

_DENSE = Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN
_EXPERT = Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN


def dense(run: BackwardWeights, block: Dense, layer: Layer, x: Float32, batch: Batch) -> tuple[Float32, Pullback]:
    """down(activation(gate(x)) * up(x))."""
    return _gated(run, layer, _DENSE, block.activation, x)


def one_expert(
    run: BackwardWeights, layer: Layer, which: int, x: Float32, tokens: np.ndarray
) -> tuple[Float32, Pullback]:
    """What one expert gives of rows that are these tokens of the batch, not weighted."""
    return _gated(run, layer, _EXPERT, Activation.SILU, x, expert=which, tokens=tokens)


def mixture(run: BackwardWeights, block: Mixture, layer: Layer, x: Float32, batch: Batch) -> tuple[Float32, Pullback]:
    """Sum over the chosen experts. Gradients flow through their weights to the router, not through the choice."""
    scores = score(block, run.linear(x, layer.weights[Role.ROUTER]))
    routing = run.routings[layer.index] = choose(block, run.biased(layer, scores), scores)
    used = np.unique(routing.experts).tolist()
    places = {which: np.nonzero(routing.experts == which) for which in used}
    done: dict[int, tuple[Float32, Pullback]] = {}

    def add(low: int, high: int) -> None:
        for which in used[low:high]:
            token, _ = places[which]
            done[which] = one_expert(run, layer, which, x[token], token)

    _each_expert(run, add, len(used))
    out = np.zeros_like(x)
    for which in used:  # in this order, whoever was first
        token, slot = places[which]
        out[token] += done[which][0] * routing.weights[token, slot, None]

    def pull(gradient: Float32) -> Float32:
        by_weights = np.empty_like(routing.weights)
        shares: dict[int, Float32] = {}

        def pull_some(low: int, high: int) -> None:
            for which in used[low:high]:
                (token, slot), (given, pull_one) = places[which], done[which]
                own = gradient[token]
                by_weights[token, slot] = (own * given).sum(axis=1)
                shares[which] = pull_one(own * routing.weights[token, slot, None])

        _each_expert(run, pull_some, len(used))
        found = np.zeros_like(x)
        for which in used:
            found[places[which][0]] += shares[which]
        by_logits = _pull_score(block, scores, _pull_choice(block, routing, scores, by_weights))
        found += run.pull(by_logits, layer.weights[Role.ROUTER])
        run.met_mixture(block, layer, x, routing, gradient)
        return found

    return out, pull


def _each_expert(run: BackwardWeights, work: Callable[[int, int], None], n: int) -> None:
    """As in the forward: experts of a small model side by side, those of a large one cut."""
    if run.is_kept:
        each(work, cut(n, 1))
    else:
        work(0, n)


def _pull_score(block: Mixture, scores: Float32, gradient: Float32) -> Float32:
    """Gradient by the router's outputs [n, E], from that by the scores."""
    if block.scoring is Scoring.SIGMOID:
        return gradient * scores * (1 - scores)
    return scores * (gradient - (gradient * scores).sum(axis=1, keepdims=True))


def _pull_choice(block: Mixture, routing: Routing, scores: Float32, by_weights: Float32) -> Float32:
    """Gradient by all scores [n, E], from that by the weights of the chosen ones [n, top_k]."""
    by_chosen = by_weights * np.float32(block.scaling)
    if block.is_normalised:
        chosen, epsilon = np.take_along_axis(scores, routing.experts, axis=1), np.float32(block.sum_eps)
        total = chosen.sum(axis=1, keepdims=True) + epsilon
        # Differences first: of a single expert, or of equal ones, they are zero, where a difference of sums is noise.
        apart = ((by_chosen[:, :, None] - by_chosen[:, None]) * chosen[:, None]).sum(axis=2)
        by_chosen = (apart + by_chosen * epsilon) / (total * total)
    found = np.zeros_like(scores)
    np.put_along_axis(found, routing.experts, by_chosen, axis=1)
    return found


def _gated(
    run: BackwardWeights, layer: Layer, roles: tuple[Role, Role, Role], activation: Activation, x: Float32, **rows: Any
) -> tuple[Float32, Pullback]:
    by_gate, by_up, by_down = (layer.weights[role] for role in roles)
    gate, up = run.linear(x, by_gate, **rows), run.linear(x, by_up, **rows)
    out = run.linear(gated(activation, gate.copy(), up), by_down, **rows)

    def pull(gradient: Float32) -> Float32:
        of_gate, of_up = _pull_gated(activation, run.pull(gradient, by_down, **rows), gate, up)
        return run.pull(of_gate, by_gate, **rows) + run.pull(of_up, by_up, **rows)

    return out, pull


def _pull_gated(activation: Activation, gradient: Float32, gate: Float32, up: Float32) -> tuple[Float32, Float32]:
    """Gradients by both factors of activation(gate) * up; the first in place of the one that is given."""
    of_up = np.empty_like(up)

    def apply(low: int, high: int) -> None:
        own = gradient[low:high]
        value, slope = slopes(activation, gate[low:high])
        np.multiply(own, value, out=of_up[low:high])
        own *= up[low:high]
        own *= slope

    if gradient.size:
        each(apply, by_rows(gradient))
    return gradient, of_up
