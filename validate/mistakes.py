"""Mistakes that LFM2 runtimes have made, or invite: the forward pass with one of them each.

When a runtime does not compute what the model says, each is tried; the one whose logits are the artifact's names
the fault.
Source: mlx-lm issue 1883 (router), transformers `modeling_lfm2*.py` for what each departs from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..convert.model.config import MoEConfig
from ..convert.model.dtypes import Float32
from ..convert.model.forward import Forward, Routing
from ..convert.model.graph import Layer, Role, WeightGraph
from ..convert.model.tensor import ArrayTensor, TensorView
from .metrics import position_kld

# A mistake is named only if it explains all but this share of the divergence, or leaves no more than arithmetic does.
_UNEXPLAINED = 0.05
_AT_LEAST_HALF = 0.5


@dataclass(frozen=True)
class Mistake:
    """What is wrong, as a report says it, and the forward pass that does it; None if the model cannot have it."""

    sentence: str
    forward: Callable[[WeightGraph], Forward | None]


class _Routed(Forward):
    """A router of another rule: `chosen` scores rank experts, `weighing` scores weigh them."""

    def _scores(self, layer: Layer, x: Float32) -> tuple[Float32, Float32]:
        raise NotImplementedError

    def route(self, layer: Layer, x: Float32) -> Routing:
        right = super().route(layer, x)
        chosen, weighing = self._scores(layer, x)
        experts = np.argsort(-chosen, axis=1, kind="stable")[:, : right.experts.shape[1]]
        weights = np.take_along_axis(weighing, experts, axis=1)
        moe = self.config.moe
        if moe is not None and moe.norm_topk_prob:
            weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(1e-6))
        scale = moe.routed_scaling_factor if moe is not None else 1.0
        return Routing(experts, weights * np.float32(scale))

    def _biased(self, layer: Layer, scores: Float32) -> Float32:
        bias = layer.get(Role.EXPERT_BIAS)
        return scores if bias is None else scores + bias.read()


class _SoftmaxRouter(_Routed):
    def _scores(self, layer: Layer, x: Float32) -> tuple[Float32, Float32]:
        values = self._linear(x, layer[Role.ROUTER])
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        scores = shifted / shifted.sum(axis=1, keepdims=True)
        return self._biased(layer, scores), scores


class _BiasWeighs(_Routed):
    def _scores(self, layer: Layer, x: Float32) -> tuple[Float32, Float32]:
        biased = self._biased(layer, _sigmoid(self._linear(x, layer[Role.ROUTER])))
        return biased, biased


class _BiasIgnored(_Routed):
    def _scores(self, layer: Layer, x: Float32) -> tuple[Float32, Float32]:
        values = self._linear(x, layer[Role.ROUTER])
        return values, _sigmoid(values)


class _Interleaved(Forward):
    def _rotate(self, x: Float32, cos: Float32, sin: Float32) -> Float32:
        out = np.empty_like(x)
        out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
        return out


class _NoHeadNorm(Forward):
    def _head_norm(self, x: Float32, gain: TensorView) -> Float32:
        return x


class _NoFinalNorm(Forward):
    def _finish(self, hidden: Float32) -> Float32:
        return hidden


def _sigmoid(x: Float32) -> Float32:
    return np.reciprocal(1 + np.exp(-x)).astype(np.float32)


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


def _config(**changes: float) -> Callable[[WeightGraph], Forward]:
    return lambda graph: Forward(replace(graph, config=replace(graph.config, **changes)))  # type: ignore[arg-type]


def _moe_config(change: Callable[[MoEConfig], MoEConfig]) -> Callable[[WeightGraph], Forward | None]:
    def forward(graph: WeightGraph) -> Forward | None:
        moe = graph.config.moe
        if moe is None or change(moe) == moe:
            return None
        return Forward(replace(graph, config=replace(graph.config, moe=change(moe))))

    return forward


def _if_moe(kind: type[Forward]) -> Callable[[WeightGraph], Forward | None]:
    return lambda graph: None if graph.config.moe is None else kind(graph)


MISTAKES: Sequence[Mistake] = (
    Mistake("the router scores experts by softmax instead of sigmoid", _if_moe(_SoftmaxRouter)),
    Mistake("the expert bias is part of the experts' weights", _if_moe(_BiasWeighs)),
    Mistake("the expert bias is ignored when experts are chosen", _if_moe(_BiasIgnored)),
    Mistake("routed_scaling_factor is not applied", _moe_config(lambda moe: replace(moe, routed_scaling_factor=1.0))),
    Mistake(
        "expert weights are normalised the other way than norm_topk_prob says",
        _moe_config(lambda moe: replace(moe, norm_topk_prob=not moe.norm_topk_prob)),
    ),
    Mistake("w1 and w3 are exchanged in dense layers", lambda graph: _exchange(graph, Role.FFN_GATE, Role.FFN_UP)),
    Mistake("w1 and w3 of the experts are exchanged", lambda graph: _exchange(graph, Role.EXPERT_GATE, Role.EXPERT_UP)),
    Mistake("the taps of the short convolution are reversed", _reverse_taps),
    Mistake("rope_theta is 1e4", _config(rope_theta=1e4)),
    Mistake("rope pairs neighbours instead of halves", _Interleaved),
    Mistake("queries and keys are not normed", _NoHeadNorm),
    Mistake("norm_eps is 1e-6", _config(norm_eps=1e-6)),
    Mistake("norm_eps is left out", _config(norm_eps=0.0)),
    Mistake("the norm before the head is skipped", _NoFinalNorm),
)


def explain(
    graph: WeightGraph, prompts: Sequence[Sequence[int]], artifact: Sequence[Float32], *, allowed: float = 0.0
) -> str:
    """The mistake that gives the artifact's logits, or an empty text if none does.

    `graph` holds the artifact's own weights; `artifact` is its logits [n, V] of each prompt; `allowed` is the mean
    divergence, in nats, that the artifact's arithmetic may leave.
    """

    def distance(forward: Forward) -> float:
        with np.errstate(all="ignore"):  # a mistake may overflow
            logits, _ = forward.prefill(prompts)
            return float(np.concatenate([position_kld(a, b) for a, b in zip(logits, artifact, strict=True)]).mean())

    whole = distance(Forward(graph))
    bound = max(_UNEXPLAINED * whole, min(allowed, _AT_LEAST_HALF * whole))
    tried = [(distance(forward), m.sentence) for m in MISTAKES if (forward := m.forward(graph)) is not None]
    least, sentence = min((found for found in tried if found[0] == found[0]), default=(np.inf, ""))
    return sentence if least < bound else ""
