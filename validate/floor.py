"""How far an artifact's own weights are from themselves when only the arithmetic changes: what no runtime can be held to.

The graph's forward with those weights is run again on the probe's tokens: with every product added up in another
order, with activations in 16 bits, or with activations rounded to 8 bits as the kernels of the artifact's encodings
round them. Nothing is assumed of a model; a deep, a narrow or a badly conditioned one has the floor that it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph.blocks import Norm
from ..graph.dtypes import DType, Float32, to_bfloat16, widen
from ..graph.graph import Layer, Weight, WeightGraph
from ..graph.reference.forward import Forward, Logits
from ..graph.reference.state import Batch
from ..graph.roles import Trait
from ..graph.tensor import TensorView
from ..quantize.encoding import Encoding
from ..quantize.rounded import rounding_of
from ..targets.encoded import Encoded, as_stored, encoding_of
from .execution import ROOM, Arithmetic
from .experts import Routed, agreement, routed
from .metrics import Metrics, PromptScore, score_prompt, summarize
from .prompts import EncodedPrompt

# Of the differences between scores that experts are ranked by in another order of additions.
_NOISE_PERCENTILE = 99
# What every quant rounds.
_ROUNDED = (Trait.TABLE, Trait.HEAD, Trait.MATRIX, Trait.EXPERTS)


@dataclass(frozen=True)
class Distance:
    """A graph from itself in one arithmetic, on the probe's prompts in order.

    `experts_agree` is the share of chosen experts in common, by layer; None of a dense model. `solid` is how many
    positions of each prompt come before the first at which float32 rounding could send a token to another expert:
    from there on sound runtimes may differ by as much as experts do. None where all are compared.
    """

    arithmetic: Arithmetic
    how: str
    scores: tuple[PromptScore, ...]
    metrics: Metrics
    experts_agree: Mapping[int, float] | None
    solid: tuple[int, ...] | None = None

    @property
    def tie(self) -> float:
        """A lead in logits that the order of additions can turn over; 0 where coarser rounding was run."""
        return 2 * self.metrics.max_abs_logit if self.arithmetic is Arithmetic.FLOAT32 else 0.0

    def compared(self, scores: Sequence[PromptScore]) -> list[PromptScore]:
        """Scores of the same prompts, at the positions that are compared; of all, if none is solid."""
        if self.solid is None or not any(self.solid):
            return list(scores)
        cut = zip(scores, self.solid, strict=True)
        return [replace(score, kld=score.kld[:n]) for score, n in cut if n]

    def to_json(self) -> dict[str, Any]:
        """What reports keep."""
        keys = ("n_positions", "kld_mean", "kld_median", "kld_p99", "kld_p999", "same_top1", "max_abs_logit")
        numbers = self.metrics.to_json()
        return {
            "arithmetic": self.arithmetic.value,
            "how": self.how,
            **{key: numbers[key] for key in keys},
            "experts_agree": min(self.experts_agree.values()) if self.experts_agree else None,
        }


@dataclass(frozen=True)
class Own:
    """The forward of some weights on the probe: `logits` [n, V] of each prompt, and how experts were ranked."""

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    logits: Sequence[Logits]
    routed: Routed
    ranked: Mapping[int, Float32]


class _Ranked(Forward):
    """Keeps the scores [tokens, E] by which each layer ranked its experts in the last call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranked: dict[int, Float32] = {}

    def biased(self, layer: Layer, scores: Float32) -> Float32:
        found = self.ranked[layer.index] = super().biased(layer, scores)
        return found


class _OtherOrder(_Ranked):
    """Every product as the sum of two halves, which is what other block sizes and thread counts do."""

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, *, expert: int | None = None) -> Float32:
        first = x.copy()
        first[:, x.shape[1] // 2 :] = 0
        return super().linear(first, weight, expert=expert) + super().linear(x - first, weight, bias, expert=expert)


class _Half(_Ranked):
    """Activations in 16 bits after every product, norm and layer: in float16 where weights are stored so, else bfloat16."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        stored = (encoding_of(weight.view) for weight in self.graph.weights())
        is_float16 = any(encoding is not None and encoding.name == DType.F16.value for encoding in stored)
        self._rounded = _to_float16 if is_float16 else _to_bfloat16

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, *, expert: int | None = None) -> Float32:
        return self._rounded(super().linear(x, weight, bias, expert=expert))

    def norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
        return self._rounded(super().norm(x, gain, norm))

    def run_layer(self, layer: Layer, hidden: Float32, batch: Batch) -> Float32:
        return self._rounded(super().run_layer(layer, hidden, batch))


class _Int8(_Ranked):
    """Activations in 8 bits, in the blocks that kernels of each weight's encoding take; whole where those are floats."""

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, *, expert: int | None = None) -> Float32:
        block = _activation_block(weight, x.shape[1])
        return super().linear(_in_int8(x, block) if block else x, weight, bias, expert=expert)


def _activation_block(weight: Weight, n_cols: int) -> int | None:
    """Elements that share a scale; None if activations stay float."""
    encoding = encoding_of(weight.view)
    if encoding is None or encoding.activation_block is None or weight.role.trait is Trait.ROUTER:
        return None
    return encoding.activation_block or n_cols


def _to_bfloat16(x: Float32) -> Float32:
    return widen(to_bfloat16(x), DType.BF16)


def _to_float16(x: Float32) -> Float32:
    return x.astype(np.float16).astype(np.float32)


def _in_int8(x: Float32, block: int) -> Float32:
    """x [n, in] rounded to 8 bits with a scale for each block."""
    blocks = x.reshape(-1, block)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    rounded: Float32 = (np.rint(blocks / scale) * scale).reshape(x.shape)
    return rounded


_FORWARDS: Mapping[Arithmetic, tuple[str, type[_Ranked]]] = {
    Arithmetic.FLOAT32: ("float32 sums in another order", _OtherOrder),
    Arithmetic.FLOAT16: ("16-bit activations", _Half),
    Arithmetic.INT8: ("8-bit activations", _Int8),
}


def run_own(graph: WeightGraph, prompts: Sequence[EncodedPrompt]) -> Own:
    """Runs a graph on the probe as it is."""
    forward = _Ranked(graph)
    logits = forward.lazy_logits([prompt.token_ids for prompt in prompts])
    return Own(graph, tuple(prompts), logits, routed(forward), forward.ranked)


def distance(own: Own, arithmetic: Arithmetic) -> Distance:
    """Runs it again in an arithmetic, and scores that against it."""
    return _distance(own, arithmetic, own.graph)


def class_distance(own: Own, arithmetic: Arithmetic, class_name: str) -> Distance:
    """Runs it again as rounding to a class's bits leaves it: what is known of an artifact whose weights cannot be read."""
    encoding = rounding_of(class_name)
    if encoding is None:
        return distance(own, arithmetic)
    matrices = (w for w in own.graph.weights() if w.role.trait in _ROUNDED)
    rounded = own.graph.with_weights({w.address: _InClass(w.view, encoding) for w in matrices})
    found = _distance(own, arithmetic, rounded)
    return replace(found, how=f"{encoding.bits}-bit weights and {found.how}")


class _InClass(Encoded):
    """Rows of a tensor as an encoding leaves them."""

    def __init__(self, view: TensorView, encoding: Encoding) -> None:
        super().__init__(view.name, view.dtype, view.shape)
        self._view, self.encoding = view, encoding

    def _rows(self, start: int, stop: int) -> Float32:
        return as_stored(self._view, self._view.rows(start, stop), self.encoding)


def _distance(own: Own, arithmetic: Arithmetic, graph: WeightGraph) -> Distance:
    how, kind = _FORWARDS[arithmetic]
    forward = kind(graph)
    logits = forward.lazy_logits([prompt.token_ids for prompt in own.prompts])
    scores = tuple(score_prompt(p, a, b) for p, a, b in zip(own.prompts, own.logits, logits, strict=True))
    agree = agreement(own.routed, routed(forward)) or None
    solid = _solid(own, forward.ranked) if arithmetic is Arithmetic.FLOAT32 and own.ranked else None
    return Distance(arithmetic, how, scores, summarize(scores), agree, solid)


def _solid(own: Own, again: Mapping[int, Float32]) -> tuple[int, ...]:
    """Of each prompt how many positions come before a near-tie of the last expert chosen and the next best."""
    lengths = [len(prompt.token_ids) for prompt in own.prompts]
    is_tied = np.zeros(sum(lengths), bool)
    for layer, ranked in own.ranked.items():
        top_k = own.routed[layer].shape[1]
        if top_k == ranked.shape[1]:
            continue
        noise = math.sqrt(ROOM[Arithmetic.FLOAT32]) * float(
            np.percentile(np.abs(ranked - again[layer]), _NOISE_PERCENTILE)
        )
        ordered = np.partition(ranked, [-top_k - 1, -top_k], axis=1)
        is_tied |= ordered[:, -top_k] - ordered[:, -top_k - 1] <= noise
    pieces = np.split(is_tied, np.cumsum(lengths)[:-1])
    return tuple(int(piece.argmax()) if piece.any() else len(piece) for piece in pieces)
