"""Bugs that exporters and runtimes have had, planted in the forward pass or in the weights that an artifact stores.

Written apart from `lfm_convert.validate.mistakes`, which names such bugs: the formulas here are spelled out anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from lfm_convert.graph.blocks import Attention, Branch, Mixture, Norm, Rope, ShortConv
from lfm_convert.graph.graph import Layer, Weight, WeightGraph
from lfm_convert.graph.reference.forward import Forward, Routing, State
from lfm_convert.graph.roles import Role
from lfm_convert.graph.rotary import default_rope
from lfm_convert.graph.tensor import ArrayTensor, TensorView
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.quantize.stored import EncodedTensor

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


class StoredAs(EncodedTensor):
    """Values as an encoding of ours stores them, without a file; `change` is what goes wrong with what it decodes to."""

    def __init__(
        self, values: np.ndarray, encoding: str, change: Callable[[np.ndarray], np.ndarray] = lambda decoded: decoded
    ) -> None:
        super().__init__("planted", values.shape, get_encoding(encoding), ())
        rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
        padded = np.pad(rows, ((0, -len(rows) % self.encoding.tile_rows), (0, 0)))
        self._values = change(self.encoding.decode(*self.encoding.encode(padded))[: len(rows)])

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._values[start:stop].copy()


def _two_bits(values: np.ndarray) -> np.ndarray:
    """Symmetric rounding in blocks of 32, to -1, 0 and 1."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    return (np.rint(blocks / scale) * scale).reshape(values.shape).astype(np.float32)


def _four_bits(graph: WeightGraph) -> WeightGraph:
    wide = [w for w in graph.weights() if w.view.n_rows > 1 and w.role not in (Role.CONV_KERNEL, Role.ROUTER)]
    return graph.with_weights({(w.role, w.layer): StoredAs(w.view.read(), "Q4_0") for w in wide})


def _one_at_two_bits(graph: WeightGraph) -> WeightGraph:
    coarse = _two_bits(graph.layers[1][Role.ATTN_OUT].read())
    return _four_bits(graph).with_weights({(Role.ATTN_OUT, 1): StoredAs(coarse, "Q4_0")})


class _Softmax(Forward):
    def route(self, block: Mixture, layer: Layer, x: np.ndarray) -> Routing:
        logits = x @ layer[Role.ROUTER].read().T
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return _weighed(block, p + layer[Role.EXPERT_BIAS].read(), p)


class _BiasInWeights(Forward):
    def route(self, block: Mixture, layer: Layer, x: np.ndarray) -> Routing:
        biased = 1 / (1 + np.exp(-(x @ layer[Role.ROUTER].read().T))) + layer[Role.EXPERT_BIAS].read()
        return _weighed(block, biased, biased)


def _weighed(block: Mixture, ranked: np.ndarray, scores: np.ndarray) -> Routing:
    experts = np.argsort(-ranked, axis=1)[:, : block.top_k]
    weights = np.take_along_axis(scores, experts, axis=1)
    return Routing(experts, weights / (weights.sum(axis=1, keepdims=True) + 1e-6) * block.scaling)


class _NoScaling(Forward):
    def route(self, block: Mixture, layer: Layer, x: np.ndarray) -> Routing:
        right = super().route(block, layer, x)
        return Routing(right.experts, right.weights / np.float32(block.scaling))


class _TapsReversed(Forward):
    def load(self, view: TensorView, start: int, stop: int) -> np.ndarray:
        values = super().load(view, start, stop)
        conv = self.graph.config.first(ShortConv)
        return values[:, ::-1] if conv and view.n_cols == conv.width else values


class _Interleaved(Forward):
    def rotate(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope: Rope) -> np.ndarray:
        pairs = x[..., 0::2] + 1j * x[..., 1::2]
        turned = pairs * (cos + 1j * sin)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(np.float32)


class _NoHeadNorm(Forward):
    def head_norm(self, x: np.ndarray, gain: Weight, norm: Norm) -> np.ndarray:
        return x


class _NoFinalNorm(Forward):
    def finish(self, hidden: np.ndarray) -> np.ndarray:
        return hidden


class _StaleConv(Forward):
    """A chunk of several tokens starts its convolutions from zeros, as if nothing had come before."""

    def extend(self, state: State, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        if len(tokens[0]) > 1:
            state.sequences[0].conv.clear()
        return super().extend(state, tokens)


class _OtherEps(Forward):
    def norm(self, x: np.ndarray, gain: Weight, norm: Norm) -> np.ndarray:
        return super().norm(x, gain, Norm(1e-6))


def _other_theta(graph: WeightGraph) -> Forward:
    def turned(branch: Branch) -> Branch:
        block = branch.block
        is_attention = isinstance(block, Attention)
        return replace(branch, block=replace(block, rope=default_rope(1e4, block.head_dim))) if is_attention else branch

    layers = tuple(replace(layer, branches=tuple(map(turned, layer.branches))) for layer in graph.layers)
    return Forward(replace(graph, layers=layers))


def _without_a_merge(graph: WeightGraph, text: str) -> list[int]:
    import tokenizers

    data = json.loads(graph.tokenizer.raw)
    data["model"]["merges"].pop(0)
    data["model"]["ignore_merges"] = False
    return list(tokenizers.Tokenizer.from_str(json.dumps(data)).encode(text).ids)


def _causal(kind: type) -> Callable[[WeightGraph], Forward]:
    def changed(branch: Branch) -> Branch:
        return (
            replace(branch, block=replace(branch.block, is_causal=True)) if isinstance(branch.block, kind) else branch
        )

    def forward(graph: WeightGraph) -> Forward:
        layers = tuple(replace(layer, branches=tuple(map(changed, layer.branches))) for layer in graph.layers)
        return Forward(replace(graph, layers=layers))

    return forward


class _LastToken(Forward):
    def vectors(self, states: np.ndarray) -> np.ndarray:
        return states[-1:]


class _NoProjection(Forward):
    def vectors(self, states: np.ndarray) -> np.ndarray:
        return states


BUGS: dict[str, Bug] = {
    "none": Bug(),
    "four bits": Bug(store=_four_bits),
    "softmax router": Bug(forward=_Softmax),
    "bias folded into weights": Bug(forward=_BiasInWeights),
    "scaling factor dropped": Bug(forward=_NoScaling),
    "w1 and w3 swapped": Bug(store=_swap_w1_w3),
    "conv taps reversed when stored": Bug(store=_reverse_taps),
    "conv taps reversed when run": Bug(forward=_TapsReversed),
    "rope theta 1e4": Bug(forward=_other_theta),
    "rope interleaved": Bug(forward=_Interleaved),
    "QK norm missing": Bug(forward=_NoHeadNorm),
    "wrong eps": Bug(forward=_OtherEps),
    "stale conv state": Bug(forward=_StaleConv),
    "final norm skipped": Bug(forward=_NoFinalNorm),
    "experts swapped": Bug(store=_swap_experts),
    "one tensor at two bits": Bug(store=_one_at_two_bits),
    "causal attention": Bug(forward=_causal(Attention)),
    "causal convolution": Bug(forward=_causal(ShortConv)),
    "last token pooled": Bug(forward=_LastToken),
    "projection missing": Bug(forward=_NoProjection),
    "a merge missing": Bug(tokenize=_without_a_merge),
}
