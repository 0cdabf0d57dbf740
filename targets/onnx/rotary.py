"""Rotary positions. Heads are turned inside `GroupQueryAttention`, by tables of all positions, or before it.

Inside is less work for a runtime, but takes a row of the tables for each position there is, and a cache that holds them
all. Before it, only new positions are turned, by cosines and sines that are put together from two short tables each:
position p is b * 512 + r, and cos(b + r) = cos b cos r - sin b sin r. That costs a megabyte a rope where whole tables
of 262,144 positions cost 134, and is exact on GPUs, whose own cosines are not for large angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from ...graph.blocks import Rope
from ...graph.config import ModelConfig
from ...graph.dtypes import DType, Float32
from ...graph.rotary import exact_angles
from ...graph.tensor import TensorView
from ..rotary_table import ROTARY_FUNCTIONS, RotaryFunction, RotaryTable
from .builder import MICROSOFT, GraphBuilder
from .caches import Kept
from .store import WeightStore

# Positions of a run, of which the shorter tables have a row each.
_RUN = 512
# Pairs that turn inside attention come in so many; of tables for long texts it takes none.
_PAIRS_MULTIPLE = 8
# Of all whole tables together: 32 MiB in float32.
_MAX_VALUES = 1 << 23


class RunTable(TensorView):
    """Cosines or sines of the first position of each run: [n_runs, n_dims / 2]."""

    def __init__(self, name: str, rope: Rope, n_runs: int, function: RotaryFunction) -> None:
        super().__init__(name, DType.F32, (n_runs, len(rope.inverse_frequencies)))
        self._rope, self._function = rope, function

    def _rows(self, start: int, stop: int) -> Float32:
        return self._function(exact_angles(self._rope, range(start * _RUN, stop * _RUN, _RUN)))


@dataclass(frozen=True)
class Rotation:
    """The names of a rope's cosines and sines: [n_positions, n_dims / 2], or those of new positions only."""

    cos: str
    sin: str
    n_dims: int
    _: KW_ONLY
    is_inside: bool
    pairs_neighbours: bool


def rotations(
    b: GraphBuilder, store: WeightStore, config: ModelConfig, kept: Kept, *, sequence: str, never_inside: bool = False
) -> dict[Rope, Rotation]:
    """The tables of each rope, stored once however many layers turn by it. `sequence` is int64 [1]: S, new tokens."""
    ropes = config.ropes
    prefixes = ["rotary"] if len(ropes) == 1 else [f"rotary.{i}" for i in range(len(ropes))]
    fits = all(map(_can_be_inside, ropes)) and _n_values(config, ropes) <= _MAX_VALUES
    if fits and not any(kept.values()) and not never_inside:
        return {
            rope: _whole(b, store, prefix, rope, config.context_length)
            for prefix, rope in zip(prefixes, ropes, strict=True)
        }
    if not ropes:
        return {}
    runs, rests = _positions(b, sequence)
    n_runs = -(-config.context_length // _RUN)
    found = {}
    for prefix, rope in zip(prefixes, ropes, strict=True):
        with b.scope(prefix):
            cos, sin = _of_new(b, store, prefix, rope, n_runs, runs, rests)
            if rope.long is not None:
                long = replace(rope, inverse_frequencies=rope.long.inverse_frequencies, long=None)
                is_long = _has_more_tokens(b, rope.long.longer_than)
                others = _of_new(b, store, f"{prefix}.long", long, n_runs, runs, rests)
                cos, sin = (b.op("Where", is_long, *both) for both in zip(others, (cos, sin), strict=True))
            cos, sin = b.from_float32(cos), b.from_float32(sin)
        found[rope] = Rotation(cos, sin, rope.n_dims, is_inside=False, pairs_neighbours=rope.pairs_neighbours)
    return found


def _n_values(config: ModelConfig, ropes: Sequence[Rope]) -> int:
    return 2 * config.context_length * sum(len(rope.inverse_frequencies) for rope in ropes)


def _can_be_inside(rope: Rope) -> bool:
    """Source: ONNX Runtime `group_query_attention_helper.h`, CheckRotaryCaches."""
    return rope.long is None and len(rope.inverse_frequencies) % _PAIRS_MULTIPLE == 0


def _has_more_tokens(b: GraphBuilder, n: int) -> str:
    """Whether the longest row has more tokens than that, padding not counted."""
    from onnx import TensorProto

    lengths = b.op("ReduceSum", b.cast("attention_mask", TensorProto.FLOAT), b.ints(1), keepdims=0)
    return b.op("Greater", b.op("ReduceMax", lengths, keepdims=0), b.scalar(n))


def _whole(b: GraphBuilder, store: WeightStore, prefix: str, rope: Rope, n_positions: int) -> Rotation:
    """The tables themselves."""
    tables = [RotaryTable(f"{prefix}.{name}", rope, n_positions, function) for name, function in ROTARY_FUNCTIONS]
    cos, sin = (store.add_constant(table.name, table, "F16" if b.is_half else "F32") for table in tables)
    return Rotation(cos, sin, rope.n_dims, is_inside=True, pairs_neighbours=rope.pairs_neighbours)


def _positions(b: GraphBuilder, sequence: str) -> tuple[str, str]:
    """Of each new position, int64 [S]: the number of its run, and its place there."""
    total = b.op("Shape", "attention_mask", start=1)
    first, stop = (b.op("Squeeze", x) for x in (b.op("Sub", total, sequence), total))
    positions = b.op("Range", first, stop, b.constant(1, "<i8"))
    runs = b.op("Div", positions, b.constant(_RUN, "<i8"))
    return runs, b.op("Sub", positions, b.op("Mul", runs, b.constant(_RUN, "<i8")))


def _of_new(
    b: GraphBuilder, store: WeightStore, prefix: str, rope: Rope, n_runs: int, runs: str, rests: str
) -> tuple[str, str]:
    """Cosines and sines of new positions in float32: [S, n_dims / 2]."""

    def rows(table: TensorView, indices: str) -> str:
        return b.op("Gather", store.add_constant(table.name, table, "F32"), indices, axis=0)

    cos_run, sin_run = (
        rows(RunTable(f"{prefix}.{name}_{_RUN}", rope, n_runs, f), runs) for name, f in ROTARY_FUNCTIONS
    )
    cos_rest, sin_rest = (rows(RotaryTable(f"{prefix}.{name}", rope, _RUN, f), rests) for name, f in ROTARY_FUNCTIONS)
    cos = b.op("Sub", b.op("Mul", cos_run, cos_rest), b.op("Mul", sin_run, sin_rest))
    sin = b.op("Add", b.op("Mul", sin_run, cos_rest), b.op("Mul", cos_run, sin_rest))
    return cos, sin


def turn(b: GraphBuilder, x: str, rotation: Rotation, *, head_dim: int, n_heads: int) -> str:
    """Heads [B, S, n_heads * head_dim] of new positions, turned."""
    is_partial = rotation.n_dims < head_dim  # only then does the operator ask how many heads there are
    sizes: dict[str, Any] = {"rotary_embedding_dim": rotation.n_dims, "num_heads": n_heads} if is_partial else {}
    inputs = [x, b.ints(0), rotation.cos, rotation.sin]
    return b.op("RotaryEmbedding", *inputs, domain=MICROSOFT, interleaved=int(rotation.pairs_neighbours), **sizes)
