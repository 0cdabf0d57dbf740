"""How far an artifact's own weights are from themselves when only the arithmetic changes: what no runtime can be held to.

The graph's forward with those weights is run again on the probe's tokens: with every product added up in another
order, with activations in 16 bits, or with activations rounded to 8 bits as the kernels of the artifact's encodings
round them. Nothing is assumed of a model; a deep, a narrow or a badly conditioned one has the floor that it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph.blocks import Norm
from ..graph.dtypes import DType, Float32, to_bfloat16, widen
from ..graph.graph import Layer, Weight, WeightGraph
from ..graph.reference.forward import Forward
from ..graph.reference.state import Batch, State
from ..graph.roles import Trait
from ..graph.tensor import TensorView
from ..quantize.encoding import Encoding
from ..quantize.encodings._elements import E2M1, E4M3
from ..quantize.encodings.ct_fp4 import mx_exponents
from ..quantize.rounded import in_int8, largest_of, rounding_of
from ..quantize.stored import Encoded
from ..targets.encoded import as_stored, encoding_of
from .execution import ROOM, Arithmetic
from .experts import Ranked, Routed, agreement, routed
from .measure import LOGITS, VECTORS, Score, measure_of
from .metrics import LogitRows, Metrics, PromptScore, summarize
from .prompts import EncodedPrompt
from .vectors import VectorMetrics, VectorScore, summarize_vectors

# Of the differences between scores that experts are ranked by in another order of additions.
_NOISE_PERCENTILE = 99
# Of the metrics what reports keep.
_KEPT_OF_LOGITS = ("n_positions", "kld_mean", "kld_median", "kld_p99", "kld_p999", "same_top1", "max_abs_logit")
_KEPT_OF_VECTORS = ("n_vectors", "cosine_mean", "cosine_min", "distance_median", "distance_p99", "ranks_mean")
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
    scores: tuple[Score, ...]
    metrics: Metrics | VectorMetrics
    experts_agree: Mapping[int, float] | None
    solid: tuple[int, ...] | None = None

    @property
    def tie(self) -> float:
        """A lead in logits that the order of additions can turn over; 0 where coarser rounding was run."""
        if self.arithmetic is not Arithmetic.FLOAT32 or not isinstance(self.metrics, Metrics):
            return 0.0
        return 2 * self.metrics.max_abs_logit

    @property
    def measure(self) -> str:
        """What gates call the divergence that it is told in."""
        return (LOGITS if isinstance(self.metrics, Metrics) else VECTORS).name

    def compared(self, scores: Sequence[Score]) -> list[Score]:
        """Scores of the same prompts, at the positions that are compared; of all, if none is solid."""
        if self.solid is None or not any(self.solid):
            return list(scores)
        cut = zip(scores, self.solid, strict=True)
        return [score.first(n) for score, n in cut if n]

    def to_json(self) -> dict[str, Any]:
        """What reports keep."""
        keys = _KEPT_OF_LOGITS if isinstance(self.metrics, Metrics) else _KEPT_OF_VECTORS
        numbers = self.metrics.to_json()
        return {
            "arithmetic": self.arithmetic.value,
            "how": self.how,
            **{key: numbers[key] for key in keys},
            "experts_agree": min(self.experts_agree.values()) if self.experts_agree else None,
        }


@dataclass(frozen=True)
class Own:
    """The forward of some weights on the probe: `logits` [n, V] of each prompt, or its vectors, and how experts were
    ranked.
    """

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    logits: Sequence[LogitRows]
    routed: Routed
    ranked: Mapping[int, Float32]


class _Again(Ranked):
    """Runs the first `n_exact` rows of a batch as they are and the others in another arithmetic, so that two runs read
    each weight once.
    """

    def __init__(self, graph: WeightGraph, n_exact: int = 0) -> None:
        super().__init__(graph)
        self._n_exact = n_exact

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        tokens = rows.pop("tokens", None)
        at = self.exact(x) if tokens is None else int(np.searchsorted(tokens, self._n_exact))
        out = self.after(super().linear(self.before(x, at, weight), weight, **rows), at, len(x))
        return out if bias is None else out + self.vector(bias)

    def exact(self, x: Float32) -> int:
        """How many of the rows of a whole batch are run as they are."""
        return min(self._n_exact, len(x))

    def before(self, x: Float32, at: int, weight: Weight) -> Float32:
        """What is multiplied for rows [n, in], of which those from `at` on are the other arithmetic's."""
        return x

    def after(self, out: Float32, at: int, n: int) -> Float32:
        """The n rows of a product, of what `before` gave."""
        return out


class _OtherOrder(_Again):
    """Every product as the sum of two halves, which is what other block sizes and thread counts do."""

    def before(self, x: Float32, at: int, weight: Weight) -> Float32:
        first, half = x[at:].copy(), x.shape[1] // 2
        first[:, half:] = 0
        return np.concatenate([x[:at], first, x[at:] - first])

    def after(self, out: Float32, at: int, n: int) -> Float32:
        out[at:n] += out[n:]
        return out[:n]


class _Half(_Again):
    """Activations in 16 bits after every product, norm and layer: in float16 where weights are stored so, else bfloat16."""

    def __init__(self, graph: WeightGraph, n_exact: int = 0) -> None:
        super().__init__(graph, n_exact)
        stored = (encoding_of(weight.view) for weight in graph.weights())
        is_float16 = any(encoding is not None and encoding.name == DType.F16.value for encoding in stored)
        self._to_16_bits = _to_float16 if is_float16 else _to_bfloat16

    def after(self, out: Float32, at: int, n: int) -> Float32:
        out[at:] = self._to_16_bits(out[at:])
        return out

    def norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
        return self.after(super().norm(x, gain, norm), self.exact(x), len(x))

    def run_layer(self, layer: Layer, hidden: Float32, batch: Batch) -> Float32:
        return self.after(super().run_layer(layer, hidden, batch), self.exact(hidden), len(hidden))


class _Rounded(_Again):
    """Activations in few bits, in the blocks that kernels of each weight's encoding take; whole where those are floats."""

    _to_few_bits: Callable[[Float32], Float32]
    _last: tuple[Float32, int, Float32] | None = None

    def before(self, x: Float32, at: int, weight: Weight) -> Float32:
        block = _activation_block(weight, x.shape[1])
        if block is None:
            return x
        last = self._last  # queries, keys and values are products of one matrix, gates and ups of another
        if last is not None and last[0] is x and last[1] == block:
            return last[2]
        few_bits = type(self)._to_few_bits(x[at:].reshape(-1, block)).reshape(-1, x.shape[1])
        rounded = np.concatenate([x[:at], few_bits])
        self._last = x, block, rounded
        return rounded


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


def _in_float8(blocks: Float32) -> Float32:
    """Blocks [n, in] rounded to E4M3 with a scale for each."""
    scale = largest_of(blocks) / np.float32(E4M3.largest)
    scale[scale == 0] = 1
    found: Float32 = E4M3.nearest(blocks / scale) * scale
    return found


def _in_float4(blocks: Float32) -> Float32:
    """Blocks [n, in] rounded to E2M1 with a power of two for each."""
    scale = np.ldexp(np.float32(1), mx_exponents(largest_of(blocks)) - 127)
    found: Float32 = E2M1.nearest(blocks / scale) * scale
    return found


class _Int8(_Rounded):
    _to_few_bits = staticmethod(in_int8)


class _Float8(_Rounded):
    _to_few_bits = staticmethod(_in_float8)


class _Float4(_Rounded):
    _to_few_bits = staticmethod(_in_float4)


_FORWARDS: Mapping[Arithmetic, tuple[str, type[_Again]]] = {
    Arithmetic.FLOAT32: ("float32 sums in another order", _OtherOrder),
    Arithmetic.FLOAT16: ("16-bit activations", _Half),
    Arithmetic.INT8: ("8-bit activations", _Int8),
    Arithmetic.FLOAT8: ("activations in 8-bit floats", _Float8),
    Arithmetic.FLOAT4: ("activations in 4-bit floats", _Float4),
}


def run_own(graph: WeightGraph, prompts: Sequence[EncodedPrompt]) -> Own:
    """Runs a graph on the probe as it is."""
    return _run(Ranked(graph), prompts)


def run_with_floor(
    graph: WeightGraph, prompts: Sequence[EncodedPrompt], arithmetic: Arithmetic
) -> tuple[Own, Distance]:
    """Runs a graph on the probe as it is and in an arithmetic, and scores that against it: one reading of its weights."""
    _, kind = _FORWARDS[arithmetic]
    ids = [prompt.token_ids for prompt in prompts]
    n_exact = sum(map(len, ids))
    both = kind(graph, n_exact)
    states = both.states(State(2 * len(ids)), [*ids, *ids])
    own = _part(both, prompts, states[: len(ids)], Forward(graph), slice(0, n_exact))
    again = _part(both, prompts, states[len(ids) :], kind(graph), slice(n_exact, None))
    return own, _distance(own, again, arithmetic)


def distance(own: Own, arithmetic: Arithmetic) -> Distance:
    """Runs it again in an arithmetic, and scores that against it."""
    return _distance(own, _run_in(arithmetic, own.graph, own.prompts), arithmetic)


def class_distance(own: Own, arithmetic: Arithmetic, class_name: str) -> Distance:
    """Runs it again as rounding to a class's bits leaves it: what is known of an artifact whose weights cannot be read."""
    encoding = rounding_of(class_name)
    if encoding is None:
        return distance(own, arithmetic)
    matrices = (w for w in own.graph.weights() if w.role.trait in _ROUNDED)
    rounded = own.graph.with_weights({w.address: _InClass(w.view, encoding) for w in matrices})
    found = _distance(own, _run_in(arithmetic, rounded, own.prompts), arithmetic)
    return replace(found, how=f"{encoding.bits}-bit weights and {found.how}")


def _run_in(arithmetic: Arithmetic, graph: WeightGraph, prompts: Sequence[EncodedPrompt]) -> Own:
    _, kind = _FORWARDS[arithmetic]
    return _run(kind(graph), prompts)


def _run(forward: Ranked, prompts: Sequence[EncodedPrompt]) -> Own:
    ids = [prompt.token_ids for prompt in prompts]
    return _part(forward, prompts, forward.states(State(len(ids)), ids), forward, slice(None))


def _part(run: Ranked, prompts: Sequence[EncodedPrompt], states: Sequence[Float32], head: Forward, rows: slice) -> Own:
    """What a run says of some of its prompts, whose tokens are these rows of all."""
    logits = [head.outputs(each) for each in states]
    chosen = {layer: experts[rows] for layer, experts in routed(run).items()}
    return Own(run.graph, tuple(prompts), logits, chosen, {layer: scores[rows] for layer, scores in run.ranked.items()})


class _InClass(Encoded):
    """Rows of a tensor as an encoding leaves them."""

    def __init__(self, view: TensorView, encoding: Encoding) -> None:
        super().__init__(view.name, view.dtype, view.shape)
        self._view, self.encoding = view, encoding

    def _rows(self, start: int, stop: int) -> Float32:
        return as_stored(self._view, self._view.rows(start, stop), self.encoding)


def _distance(own: Own, again: Own, arithmetic: Arithmetic) -> Distance:
    how, _ = _FORWARDS[arithmetic]
    measure = measure_of(own.graph.config)
    rows = zip(own.prompts, own.logits, again.logits, strict=True)
    scores = tuple(measure.score(prompt, a, b) for prompt, a, b in rows)
    agree = agreement(own.routed, again.routed) or None
    solid = _solid(own, again.ranked) if arithmetic is Arithmetic.FLOAT32 and own.ranked else None
    return Distance(arithmetic, how, scores, _summarized(scores), agree, solid)


def _summarized(scores: Sequence[Score]) -> Metrics | VectorMetrics:
    vectors = [score for score in scores if isinstance(score, VectorScore)]
    return summarize_vectors(vectors) if vectors else summarize([s for s in scores if isinstance(s, PromptScore)])


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
