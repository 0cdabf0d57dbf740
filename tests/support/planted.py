"""Bugs that exporters and runtimes have had, planted in the forward pass or in the weights that an artifact stores.

Written apart from `lfm_convert.validate.mistakes`, which names such bugs: the formulas here are spelled out anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lfm_convert.convert.model.forward import Forward, Routing, State
from lfm_convert.convert.model.graph import Layer, Role, WeightGraph
from lfm_convert.convert.model.tensor import ArrayTensor, TensorView

Store = Callable[[WeightGraph], WeightGraph]


@dataclass(frozen=True)
class Bug:
    """How an artifact is stored, run and tokenized. Without a bug, each as it should be."""

    store: Store = lambda graph: graph
    forward: Callable[[WeightGraph], Forward] = Forward
    tokenize: Callable[[WeightGraph, str], list[int] | None] = lambda graph, text: None


def _changed(graph: WeightGraph, arrays: Mapping[tuple[Role, int | None], np.ndarray]) -> WeightGraph:
    return graph.with_weights({a: ArrayTensor("planted", np.ascontiguousarray(v)) for a, v in arrays.items()})


def _swap_w1_w3(graph: WeightGraph) -> WeightGraph:
    gate, up = (graph.layers[0][role].read() for role in (Role.FFN_GATE, Role.FFN_UP))
    return _changed(graph, {(Role.FFN_GATE, 0): up, (Role.FFN_UP, 0): gate})


def _reverse_taps(graph: WeightGraph) -> WeightGraph:
    return _changed(graph, {(Role.CONV_KERNEL, 2): graph.layers[2][Role.CONV_KERNEL].read()[:, ::-1]})


def _swap_experts(graph: WeightGraph) -> WeightGraph:
    down = graph.layers[2][Role.EXPERT_DOWN].read()
    down[[1, 3]] = down[[3, 1]]
    return _changed(graph, {(Role.EXPERT_DOWN, 2): down})


def _two_bits(values: np.ndarray, levels: int = 1) -> np.ndarray:
    """Symmetric rounding in blocks of 32, to 2 * levels + 1 values."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / levels
    return (np.rint(blocks / scale) * scale).reshape(values.shape).astype(np.float32)


def _four_bits(graph: WeightGraph) -> WeightGraph:
    wide = [w for w in graph.weights() if w.view.n_rows > 1 and w.role not in (Role.CONV_KERNEL, Role.ROUTER)]
    return _changed(graph, {(w.role, w.layer): _two_bits(w.view.read(), levels=7) for w in wide})


def _one_at_two_bits(graph: WeightGraph) -> WeightGraph:
    return _changed(_four_bits(graph), {(Role.ATTN_OUT, 1): _two_bits(graph.layers[1][Role.ATTN_OUT].read())})


class _Routed(Forward):
    def _normed(self, weights: np.ndarray) -> np.ndarray:
        return weights / (weights.sum(axis=1, keepdims=True) + 1e-6) * self.config.moe.routed_scaling_factor


class _Softmax(_Routed):
    def route(self, layer: Layer, x: np.ndarray) -> Routing:
        logits = x @ layer[Role.ROUTER].read().T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        experts = np.argsort(-(p + layer[Role.EXPERT_BIAS].read()), axis=1)[:, : self.config.moe.top_k]
        weights = np.take_along_axis(p, experts, axis=1)
        return Routing(experts, self._normed(weights))


class _BiasInWeights(_Routed):
    def route(self, layer: Layer, x: np.ndarray) -> Routing:
        biased = 1 / (1 + np.exp(-(x @ layer[Role.ROUTER].read().T))) + layer[Role.EXPERT_BIAS].read()
        experts = np.argsort(-biased, axis=1)[:, : self.config.moe.top_k]
        weights = np.take_along_axis(biased, experts, axis=1)
        return Routing(experts, self._normed(weights))


class _NoScaling(Forward):
    def route(self, layer: Layer, x: np.ndarray) -> Routing:
        right = super().route(layer, x)
        return Routing(right.experts, right.weights / np.float32(self.config.moe.routed_scaling_factor))


class _TapsReversed(Forward):
    def _load(self, view: TensorView, start: int, stop: int) -> np.ndarray:
        values = super()._load(view, start, stop)
        return values[:, ::-1] if view.n_cols == self.config.conv_width else values


class _Interleaved(Forward):
    def _rotate(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        pairs = x[..., 0::2] + 1j * x[..., 1::2]
        turned = pairs * (cos + 1j * sin)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(np.float32)


class _NoHeadNorm(Forward):
    def _head_norm(self, x: np.ndarray, gain: TensorView) -> np.ndarray:
        return x


class _NoFinalNorm(Forward):
    def _finish(self, hidden: np.ndarray) -> np.ndarray:
        return hidden


class _StaleConv(Forward):
    """A chunk of several tokens starts its convolutions from zeros, as if nothing had come before."""

    def extend(self, state: State, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        if len(tokens[0]) > 1:
            state.sequences[0].conv.clear()
        return super().extend(state, tokens)


def _with_config(**changes: Any) -> Callable[[WeightGraph], Forward]:
    return lambda graph: Forward(replace(graph, config=replace(graph.config, **changes)))


def _without_a_merge(graph: WeightGraph, text: str) -> list[int]:
    import tokenizers

    data = json.loads(graph.tokenizer.raw)
    data["model"]["merges"].pop(0)
    data["model"]["ignore_merges"] = False
    return list(tokenizers.Tokenizer.from_str(json.dumps(data)).encode(text).ids)


BUGS: dict[str, Bug] = {
    "none": Bug(),
    "four bits": Bug(store=_four_bits),
    "softmax router": Bug(forward=_Softmax),
    "bias folded into weights": Bug(forward=_BiasInWeights),
    "scaling factor dropped": Bug(forward=_NoScaling),
    "w1 and w3 swapped": Bug(store=_swap_w1_w3),
    "conv taps reversed when stored": Bug(store=_reverse_taps),
    "conv taps reversed when run": Bug(forward=_TapsReversed),
    "rope theta 1e4": Bug(forward=_with_config(rope_theta=1e4)),
    "rope interleaved": Bug(forward=_Interleaved),
    "QK norm missing": Bug(forward=_NoHeadNorm),
    "wrong eps": Bug(forward=_with_config(norm_eps=1e-6)),
    "stale conv state": Bug(forward=_StaleConv),
    "final norm skipped": Bug(forward=_NoFinalNorm),
    "experts swapped": Bug(store=_swap_experts),
    "one tensor at two bits": Bug(store=_one_at_two_bits),
    "a merge missing": Bug(tokenize=_without_a_merge),
}
