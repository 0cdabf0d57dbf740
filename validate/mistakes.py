"""Mistakes that runtimes have made, or invite: the forward pass with one of them each.

When a runtime does not compute what the model says, each is tried; the one whose logits are the artifact's names
the fault.
Source: mlx-lm issue 1883 (router); the blocks of `graph/reference` for what each departs from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph.blocks import Activation, Attention, Dense, Mixture, Norm, Pooling, Rope, Scoring, ShortConv
from ..graph.config import Kind
from ..graph.dtypes import Float32
from ..graph.graph import Layer, Weight, WeightGraph
from ..graph.reference.feed_forward import Routing, choose, score
from ..graph.reference.forward import Forward
from ..graph.roles import Role
from ..graph.rotary import default_rope
from ..graph.tensor import ArrayTensor
from .measure import measure_of
from .metrics import LogitRows

# A mistake is named only if it explains all but this share of the divergence, or leaves no more than arithmetic does.
_UNEXPLAINED = 0.05
_AT_LEAST_HALF = 0.5


@dataclass(frozen=True)
class Mistake:
    """What is wrong, as a report says it, and the forward pass that does it; None if the model cannot have it."""

    sentence: str
    forward: Callable[[WeightGraph], Forward | None]


class _BiasWeighs(Forward):
    def route(self, block: Mixture, layer: Layer, x: Float32) -> Routing:
        biased = self.biased(layer, score(block, self.linear(x, layer.weights[Role.ROUTER])))
        return choose(block, biased, biased)


class _BiasIgnored(Forward):
    def biased(self, layer: Layer, scores: Float32) -> Float32:
        return scores


class _NoHeadNorm(Forward):
    def head_norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
        return x


class _NoFinalNorm(Forward):
    def finish(self, hidden: Float32) -> Float32:
        return hidden


def _exchange(graph: WeightGraph, first: Role, second: Role) -> Forward:
    views = {(w.role, w.layer): w.view for w in graph.weights()}
    other = {first: second, second: first}
    return Forward(graph.with_weights({k: views[other[k[0]], k[1]] for k in views if k[0] in other}))


def _reverse_taps(graph: WeightGraph) -> Forward:
    kernels = [w for w in graph.weights() if w.role is Role.CONV_KERNEL]
    return Forward(
        graph.with_weights(
            {(w.role, w.layer): ArrayTensor(w.view.name, np.ascontiguousarray(w.view.read()[:, ::-1])) for w in kernels}
        )
    )


def _blocks(kind: type[Kind], change: Callable[[Kind], Kind]) -> Callable[[WeightGraph], Forward | None]:
    """Other blocks of a kind, over the same weights; None for a model that has none, or none other."""

    def forward(graph: WeightGraph) -> Forward | None:
        layers = tuple(
            replace(
                layer,
                branches=tuple(
                    replace(branch, block=change(branch.block)) if isinstance(branch.block, kind) else branch
                    for branch in layer.branches
                ),
            )
            for layer in graph.layers
        )
        return None if layers == graph.layers else Forward(replace(graph, layers=layers))

    return forward


def _norms(eps: float) -> Callable[[WeightGraph], Forward]:
    class OtherNorm(Forward):
        def norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
            return super().norm(x, gain, Norm(eps))

    return OtherNorm


def _rope(change: Callable[[Rope, int], Rope]) -> Callable[[WeightGraph], Forward | None]:
    return _blocks(Attention, lambda block: replace(block, rope=block.rope and change(block.rope, block.rope.n_dims)))


def _all_turn(rope: Rope, n_dims: int) -> Rope:
    return default_rope(rope.theta, n_dims) if rope.is_partial else rope


def _changed(graph: WeightGraph, other: WeightGraph) -> Forward | None:
    return None if other.config == graph.config else Forward(other)


def _last_token(graph: WeightGraph) -> Forward | None:
    head = graph.config.vectors
    if head is None or head.is_per_token:
        return None
    other = replace(head, pooling=Pooling.LAST)
    return _changed(graph, replace(graph, config=replace(graph.config, vectors=other)))


def _unscaled_branches(graph: WeightGraph) -> Forward | None:
    layers = tuple(
        replace(layer, branches=tuple(replace(branch, scale=1.0) for branch in layer.branches))
        for layer in graph.layers
    )
    return None if layers == graph.layers else Forward(replace(graph, layers=layers))


def _if_mixture(kind: type[Forward]) -> Callable[[WeightGraph], Forward | None]:
    return lambda graph: kind(graph) if graph.config.of_kind(Mixture) else None


MISTAKES: Sequence[Mistake] = (
    Mistake(
        "the router scores experts by softmax instead of sigmoid",
        _blocks(Mixture, lambda block: replace(block, scoring=Scoring.SOFTMAX)),
    ),
    Mistake(
        "the router scores experts by sigmoid instead of softmax",
        _blocks(Mixture, lambda block: replace(block, scoring=Scoring.SIGMOID)),
    ),
    Mistake("the expert bias is part of the experts' weights", _if_mixture(_BiasWeighs)),
    Mistake("the expert bias is ignored when experts are chosen", _if_mixture(_BiasIgnored)),
    Mistake("routed_scaling_factor is not applied", _blocks(Mixture, lambda block: replace(block, scaling=1.0))),
    Mistake(
        "expert weights are normalised the other way than norm_topk_prob says",
        _blocks(Mixture, lambda block: replace(block, is_normalised=not block.is_normalised)),
    ),
    Mistake("w1 and w3 are exchanged in dense layers", lambda graph: _exchange(graph, Role.FFN_GATE, Role.FFN_UP)),
    Mistake("w1 and w3 of the experts are exchanged", lambda graph: _exchange(graph, Role.EXPERT_GATE, Role.EXPERT_UP)),
    Mistake("the taps of the short convolution are reversed", _reverse_taps),
    Mistake("rope_theta is 1e4", _rope(lambda rope, size: default_rope(1e4, size))),
    Mistake("rope pairs neighbours instead of halves", _rope(lambda rope, size: replace(rope, pairs_neighbours=True))),
    Mistake("pairs of heads turn that should be at rest", _rope(_all_turn)),
    Mistake(
        "the rope is not the scaled one that the config names",
        _rope(lambda rope, size: default_rope(rope.theta, size)),
    ),
    Mistake("cosines and sines lack the rope's factor", _rope(lambda rope, size: replace(rope, factor=1.0))),
    Mistake("scores are scaled by the head's size", _blocks(Attention, lambda block: replace(block, score_scale=None))),
    Mistake(
        "gates go through SiLU instead of GELU",
        _blocks(Dense, lambda block: replace(block, activation=Activation.SILU)),
    ),
    Mistake("what branches add is not scaled", _unscaled_branches),
    Mistake(
        "embeddings are not scaled",
        lambda graph: _changed(graph, replace(graph, config=replace(graph.config, embedding_scale=1.0))),
    ),
    Mistake("queries and keys are not normed", _NoHeadNorm),
    Mistake("attention sees no later tokens", _blocks(Attention, lambda block: replace(block, is_causal=True))),
    Mistake(
        "the short convolution sees no later tokens", _blocks(ShortConv, lambda block: replace(block, is_causal=True))
    ),
    Mistake("the vector is the last token's", _last_token),
    Mistake("heads are not gated", _blocks(Attention, lambda block: replace(block, is_gated=False))),
    Mistake("windows are not kept", _blocks(Attention, lambda block: replace(block, window=None))),
    Mistake(
        "windows are a position too short",
        _blocks(Attention, lambda block: replace(block, window=block.window and max(1, block.window - 1))),
    ),
    Mistake("norm_eps is 1e-6", _norms(1e-6)),
    Mistake("norm_eps is left out", _norms(0.0)),
    Mistake("the norm before the head is skipped", _NoFinalNorm),
)


def explain(
    graph: WeightGraph, prompts: Sequence[Sequence[int]], artifact: Sequence[LogitRows], *, allowed: float = 0.0
) -> str:
    """The mistake that gives the artifact's logits, or an empty text if none does.

    `graph` holds the artifact's own weights; `artifact` is its logits [n, V] of each prompt; `allowed` is the mean
    divergence, in nats, that the artifact's arithmetic may leave.
    """

    measure = measure_of(graph.config)

    def distance(forward: Forward) -> float:
        with np.errstate(all="ignore"):  # a mistake may overflow
            logits = forward.lazy_logits(prompts)
            return float(np.concatenate([measure.of(a, b) for a, b in zip(logits, artifact, strict=True)]).mean())

    whole = distance(Forward(graph))
    bound = max(_UNEXPLAINED * whole, min(allowed, _AT_LEAST_HALF * whole))
    tried = [(distance(forward), m.sentence) for m in MISTAKES if (forward := m.forward(graph)) is not None]
    least, sentence = min((found for found in tried if found[0] == found[0]), default=(np.inf, ""))
    return sentence if least < bound else ""
