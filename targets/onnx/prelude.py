"""What all layers share, computed once a run, and what every emitter of a block is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph.blocks import Rope
from ...graph.config import ModelConfig
from .builder import GraphBuilder
from .caches import Kept
from .rotary import Rotation, rotations
from .store import WeightStore


@dataclass(frozen=True)
class Span:
    """The positions that a layer's attention is given: T, those that its cache keeps and the new ones."""

    attention_bias: str  # [B, 1, S, T], very negative between a token and padding, either way, else 0
    last_position: str  # int32 [B]: T - 1
    total_length: str  # int32 [1]: T


@dataclass(frozen=True)
class Prelude:
    """Names of what layers share. B batch, S new tokens. `spans` are by the number of positions that caches keep.

    Padding is zero from the embedding on, and stays so: norms, products without a bias and gates keep zeros, and
    padding attends only to padding, whose values are zero. What it leaves in a convolution's state is zero, then.
    """

    token_mask: str  # [B, S, 1], 1 for a token, 0 for padding
    spans: Mapping[int | None, Span]
    rotations: Mapping[Rope, Rotation]


@dataclass(frozen=True)
class Context:
    """What an emitter is given beside its block: where nodes go, where weights lie, what layers share.

    `fused_experts` asks for one QMoE node a mixture; `is_wide` for a residual stream in float32. Without caches a text
    `is_whole`: all of it is in one run.
    """

    b: GraphBuilder
    store: WeightStore
    prelude: Prelude
    kept: Kept
    fused_experts: bool
    is_wide: bool
    is_whole: bool = False


def emit_prelude(b: GraphBuilder, store: WeightStore, config: ModelConfig, kept: Kept) -> Prelude:
    """Emits what layers share, for caches that keep so many positions."""
    from onnx import TensorProto

    batch, sequence = b.op("Shape", "input_ids", end=1), b.op("Shape", "input_ids", start=1)
    total = b.cast(b.op("Shape", "attention_mask", start=1), TensorProto.INT32)
    mask = b.cast("attention_mask", TensorProto.FLOAT)  # WebGPU has no int64
    new = b.op("Slice", mask, b.op("Neg", sequence), b.ints(np.iinfo(np.int64).max), b.ints(1))
    is_same = b.op("Equal", b.op("Unsqueeze", new, b.ints(1, 3)), b.op("Unsqueeze", mask, b.ints(1, 2)))
    far, none = far_below(b), b.constant(0, b.float_dtype)
    token_mask = b.from_float32(b.op("Unsqueeze", new, b.ints(2)))
    whole = _span(b, b.op("Where", is_same, none, far), total, batch)
    spans: dict[int | None, Span] = {None: whole}
    for n_kept in sorted({n for n in kept.values() if n is not None}):
        spans[n_kept] = _last(b, whole, n_kept, sequence, batch)
    turned = rotations(b, store, config, kept, sequence=sequence)
    return Prelude(token_mask=token_mask, spans=spans, rotations=turned)


def far_below(b: GraphBuilder) -> str:
    """A number far below any score, yet finite in half precision."""
    return b.constant(-30000 if b.is_half else -1e9, b.float_dtype)


def _span(b: GraphBuilder, attention_bias: str, total: str, batch: str) -> Span:
    last = b.op("Expand", b.op("Sub", total, b.constant(1, "<i4")), batch)
    return Span(attention_bias=attention_bias, last_position=last, total_length=total)


def _last(b: GraphBuilder, whole: Span, n_kept: int, sequence: str, batch: str) -> Span:
    """New positions and the last `n_kept` before them."""
    from onnx import TensorProto

    with b.scope(f"last_{n_kept}"):
        most = b.op("Add", b.cast(sequence, TensorProto.INT32), b.constant([n_kept], "<i4"))
        total = b.op("Min", whole.total_length, most)
        start = b.op("Neg", b.cast(total, TensorProto.INT64))
        bias = b.op("Slice", whole.attention_bias, start, b.ints(np.iinfo(np.int64).max), b.ints(3))
        return _span(b, bias, total, batch)
