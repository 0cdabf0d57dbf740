"""Rotary positions. Heads are turned inside `GroupQueryAttention`, by tables of all positions, or before it.

Inside is less work for a runtime, but takes a row of the tables for each position there is, and a cache that holds them
all. Before it, only new positions are turned, by cosines and sines that are put together from two short tables each:
position p is b * 512 + r, and cos(b + r) = cos b cos r - sin b sin r. That costs a megabyte a rope where whole tables
of 262,144 positions cost 134, and is exact on GPUs, whose own cosines are not for large angles.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...graph.blocks import Attention, Rope
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
# Of all whole tables together: 32 MiB in float32.
_MAX_VALUES = 1 << 23


class RunTable(TensorView):
    """Cosines or sines of the first position of each run: [n_runs, head_dim / 2]."""

    def __init__(self, name: str, rope: Rope, n_runs: int, function: RotaryFunction) -> None:
        super().__init__(name, DType.F32, (n_runs, len(rope.inverse_frequencies)))
        self._rope, self._function = rope, function

    def _rows(self, start: int, stop: int) -> Float32:
        return self._function(exact_angles(self._rope, range(start * _RUN, stop * _RUN, _RUN)))


@dataclass(frozen=True)
class Rotation:
    """The names of a rope's cosines and sines: [n_positions, head_dim / 2], or those of new positions only."""

    cos: str
    sin: str
    is_inside: bool
    pairs_neighbours: bool


def rotations(
    b: GraphBuilder, store: WeightStore, config: ModelConfig, kept: Kept, *, sequence: str, never_inside: bool = False
) -> dict[Rope, Rotation]:
    """The tables of each rope, stored once however many layers turn by it. `sequence` is int64 [1]: S, new tokens."""
    blocks = config.of_kind(Attention).values()
    ropes = list(dict.fromkeys(block.rope for block in blocks if block.rope is not None))
    prefixes = ["rotary"] if len(ropes) == 1 else [f"rotary.{i}" for i in range(len(ropes))]
    n_values = 2 * config.context_length * sum(len(rope.inverse_frequencies) for rope in ropes)
    if n_values <= _MAX_VALUES and not any(kept.values()) and not never_inside:
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
            found[rope] = _of_new(b, store, prefix, rope, n_runs, runs, rests)
    return found


def _whole(b: GraphBuilder, store: WeightStore, prefix: str, rope: Rope, n_positions: int) -> Rotation:
    """The tables themselves."""
    tables = [RotaryTable(f"{prefix}.{name}", rope, n_positions, function) for name, function in ROTARY_FUNCTIONS]
    cos, sin = (store.add_constant(table.name, table, "F16" if b.is_half else "F32") for table in tables)
    return Rotation(cos=cos, sin=sin, is_inside=True, pairs_neighbours=rope.pairs_neighbours)


def _positions(b: GraphBuilder, sequence: str) -> tuple[str, str]:
    """Of each new position, int64 [S]: the number of its run, and its place there."""
    total = b.op("Shape", "attention_mask", start=1)
    first, stop = (b.op("Squeeze", x) for x in (b.op("Sub", total, sequence), total))
    positions = b.op("Range", first, stop, b.constant(1, "<i8"))
    runs = b.op("Div", positions, b.constant(_RUN, "<i8"))
    return runs, b.op("Sub", positions, b.op("Mul", runs, b.constant(_RUN, "<i8")))


def _of_new(
    b: GraphBuilder, store: WeightStore, prefix: str, rope: Rope, n_runs: int, runs: str, rests: str
) -> Rotation:
    """Cosines and sines of new positions: [S, head_dim / 2]."""

    def rows(table: TensorView, indices: str) -> str:
        return b.op("Gather", store.add_constant(table.name, table, "F32"), indices, axis=0)

    cos_run, sin_run = (
        rows(RunTable(f"{prefix}.{name}_{_RUN}", rope, n_runs, f), runs) for name, f in ROTARY_FUNCTIONS
    )
    cos_rest, sin_rest = (rows(RotaryTable(f"{prefix}.{name}", rope, _RUN, f), rests) for name, f in ROTARY_FUNCTIONS)
    cos = b.op("Sub", b.op("Mul", cos_run, cos_rest), b.op("Mul", sin_run, sin_rest))
    sin = b.op("Add", b.op("Mul", sin_run, cos_rest), b.op("Mul", cos_run, sin_rest))
    cos, sin = b.from_float32(cos), b.from_float32(sin)
    return Rotation(cos=cos, sin=sin, is_inside=False, pairs_neighbours=rope.pairs_neighbours)


def turn(b: GraphBuilder, x: str, rotation: Rotation) -> str:
    """Heads [B, S, n * head_dim] of new positions, turned."""
    inputs = [x, b.ints(0), rotation.cos, rotation.sin]
    return b.op("RotaryEmbedding", *inputs, domain=MICROSOFT, interleaved=int(rotation.pairs_neighbours))
