"""How far the checkpoint is from itself when only the arithmetic changes: what no artifact can be held to.

The reference is run again, on a few hundred tokens, with every product added up in another order, with activations in
bfloat16, and with activations in 8 bits. A model whose own distance is larger than a limit gets a limit of twice that
distance; a token that leads by less than rounding moves logits is a tie, and choosing another is no difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..convert.model.dtypes import DType, Float32, to_bfloat16, widen
from ..convert.model.forward import Forward
from ..convert.model.graph import Layer, Role, WeightGraph
from ..convert.model.tensor import TensorView
from .execution import Arithmetic
from .experts import Routed, agreement, routed
from .metrics import Metrics, score_prompt, summarize
from .prompts import EncodedPrompt

_INT8_BLOCK = 32


@dataclass(frozen=True)
class Distance:
    """The checkpoint from itself in one arithmetic; `experts_agree` is the least of its layers, None if it is dense."""

    how: str
    metrics: Metrics
    experts_agree: float | None


@dataclass(frozen=True)
class Floor:
    """The measured floor of a model, and the experts that the reference itself chose on the same tokens."""

    distances: Mapping[Arithmetic, Distance]
    routed: Routed

    @property
    def tie(self) -> float:
        """A lead in logits that the order of additions can turn over."""
        return 2 * self.distances[Arithmetic.FLOAT32].metrics.max_abs_logit

    def to_json(self) -> list[dict[str, Any]]:
        """One row an arithmetic, as reports keep it."""
        keys = ("n_positions", "kld_mean", "kld_median", "kld_p999", "same_top1", "ppl_ratio", "max_abs_logit")
        return [
            {
                "arithmetic": arithmetic.value,
                "how": distance.how,
                **{key: distance.metrics.to_json()[key] for key in keys},
                "experts_agree": distance.experts_agree,
            }
            for arithmetic, distance in self.distances.items()
        ]


class _OtherOrder(Forward):
    """Every product as the sum of two halves, which is what other block sizes and thread counts do."""

    def _linear(self, x: Float32, view: TensorView, bias: TensorView | None = None, **rows: Any) -> Float32:
        first = x.copy()
        first[:, x.shape[1] // 2 :] = 0
        return super()._linear(first, view, **rows) + super()._linear(x - first, view, bias, **rows)


class _Bfloat16(Forward):
    """Activations as the checkpoint's own type holds them: after every product, norm and layer."""

    def _linear(self, x: Float32, view: TensorView, bias: TensorView | None = None, **rows: Any) -> Float32:
        return _rounded(super()._linear(x, view, bias, **rows))

    def _norm(self, x: Float32, gain: TensorView) -> Float32:
        return _rounded(super()._norm(x, gain))

    def run_layer(self, layer: Layer, *arguments: Any) -> Float32:
        return _rounded(super().run_layer(layer, *arguments))


class _Int8(Forward):
    """Activations in 8 bits by blocks of 32, as the kernels of quantised weights take them; routers take them whole."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph)
        self._routers = {id(view) for layer in graph.layers if (view := layer.get(Role.ROUTER)) is not None}

    def _linear(self, x: Float32, view: TensorView, bias: TensorView | None = None, **rows: Any) -> Float32:
        is_whole = id(view) in self._routers or x.shape[1] % _INT8_BLOCK
        return super()._linear(x if is_whole else _in_int8(x), view, bias, **rows)


def _rounded(x: Float32) -> Float32:
    return widen(to_bfloat16(x), DType.BF16)


def _in_int8(x: Float32) -> Float32:
    """x [n, in] rounded to 8 bits with a scale for each block of 32."""
    blocks = x.reshape(-1, _INT8_BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    rounded: Float32 = (np.rint(blocks / scale) * scale).reshape(x.shape)
    return rounded


_FORWARDS: Mapping[Arithmetic, tuple[str, type[Forward]]] = {
    Arithmetic.FLOAT32: ("float32 in another order of additions", _OtherOrder),
    Arithmetic.FLOAT16: ("bfloat16 activations", _Bfloat16),
    Arithmetic.INT8: ("8-bit activations", _Int8),
}


def measure_floor(graph: WeightGraph, prompts: Sequence[EncodedPrompt]) -> Floor:
    """Runs the graph on some prompts as it is and in each arithmetic."""
    tokens = [prompt.token_ids for prompt in prompts]
    whole = [EncodedPrompt(prompt.id, prompt.token_ids) for prompt in prompts]
    right = Forward(graph)
    expected, _ = right.prefill(tokens)
    choices = routed(right)
    found = {}
    for arithmetic, (how, kind) in _FORWARDS.items():
        forward = kind(graph)
        logits, _ = forward.prefill(tokens)
        scores = [score_prompt(p, a, b) for p, a, b in zip(whole, expected, logits, strict=True)]
        shares = agreement(choices, routed(forward)).values()
        found[arithmetic] = Distance(how, summarize(scores), min(shares, default=None))
    return Floor(found, choices)
