"""What all layers of a function share: positions, masks, rotary tables, states; and what every emitter is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...graph.blocks import Attention, Rope
from ...graph.config import ModelConfig
from ...graph.dtypes import DType, Float32
from ...graph.graph import Weight
from ...graph.tensor import TensorView
from ..rotary_table import ROTARY_FUNCTIONS, RotaryTable
from .builder import Builder, Var
from .caches import Caches
from .interface import CONV_IN, POSITION
from .mil import Dtype, Feature

# What a hidden key's score is lowered by: far below any score, yet finite in half precision.
_FAR = 30000


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the new positions: [n, 1, head_dim / 2]."""

    cos: Var
    sin: Var


@dataclass(frozen=True, kw_only=True)
class Context:
    """`n` new tokens, of which the first `n_tokens` (int32 [1]) are real; None where all are.

    `masks` are added to scores [n, keys], by window; `past` has what each convolution remembers, [1, width - 1, hidden],
    by layer, and `kept` collects what it is to remember.
    """

    b: Builder
    caches: Caches
    n: int
    position: Var
    n_tokens: Var | None
    masks: Mapping[int | None, Var]
    rotations: Mapping[Rope, Rotation]
    past: Mapping[int, Var]
    kept: dict[int, Var] = field(default_factory=dict)

    def weight(self, weight: Weight) -> Var:
        """A weight as the program has it."""
        return self.b.constant(self.b.store.weight(weight))

    def at(self, *places: Var | int) -> Var:
        """An index int32 [rank] of fixed and computed places, those of which are [1]."""
        return self.b.concat([self.b.literal([p]) if isinstance(p, int) else p for p in places], 0)


class _Counting(TensorView):
    """0, 1, 2, … as one row: positions are compared as float32, which holds them exactly."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(name, DType.F32, (count,))

    def _rows(self, start: int, stop: int) -> Float32:
        return np.arange(self.n_cols, dtype=np.float32)[None][start:stop]


def counting(b: Builder, count: int, *shape: int) -> Var:
    """0 … count - 1 as float32 of a shape."""
    name = f"counting_{count}"
    return b.constant(b.store.table(name, _Counting(name, count), "F32"), shape)


def begin(
    b: Builder, config: ModelConfig, caches: Caches, n: int, *, n_tokens: Var | None, state: Feature | None
) -> Context:
    """What layers share in a call of n tokens. `state` is where convolutions' windows are kept, or None for an input."""
    position = Var(POSITION, Dtype.INT32, (1,))
    with b.scope("positions"):
        masks = _masks(b, caches, n, position)
        rotations = _rotations(b, config, caches, n, position)
    with b.scope("windows"):
        past = _past(b, caches, position, state)
    return Context(
        b=b, caches=caches, n=n, position=position, n_tokens=n_tokens, masks=masks, rotations=rotations, past=past
    )


def _masks(b: Builder, caches: Caches, n: int, position: Var) -> dict[int | None, Var]:
    first = b.cast(position, Dtype.FLOAT32)
    queries = b.binary("add", first, counting(b, n, n, 1))
    return {
        window: _mask(
            b, window, first, queries, n_keys=caches.context + caches.chunk if window is None else window - 1 + n
        )
        for window in dict.fromkeys(rows.window for rows in caches.rows.values())
    }


def _mask(b: Builder, window: int | None, first: Var, queries: Var, *, n_keys: int) -> Var:
    """Float16 [n, keys]: zero for a key that a query sees. Key k of a window lies k - (window - 1) after the first query."""
    keys = counting(b, n_keys, 1, n_keys)
    if window is not None:
        keys = b.binary("add", keys, b.binary("sub", first, np.float32(window - 1)))
    seen = b.binary("less_equal", keys, queries, is_bool=True)
    if window is not None:
        after = b.binary("sub", queries, np.float32(window))
        for is_seen in (
            b.binary("greater", keys, after, is_bool=True),
            b.binary("greater_equal", keys, np.float32(0), is_bool=True),
        ):
            seen = b.binary("logical_and", seen, is_seen, is_bool=True)
    hidden = b.binary("sub", b.cast(seen, Dtype.FLOAT16), np.float16(1))
    return b.binary("mul", hidden, np.float16(_FAR))


def _rotations(b: Builder, config: ModelConfig, caches: Caches, n: int, position: Var) -> dict[Rope, Rotation]:
    blocks = config.of_kind(Attention)
    ropes = list(dict.fromkeys(rope for layer in caches.rows if (rope := blocks[layer].rope) is not None))
    return {rope: _rotation(b, f"rotary_{i}", rope, caches, n, position) for i, rope in enumerate(ropes)}


def _rotation(b: Builder, prefix: str, rope: Rope, caches: Caches, n: int, position: Var) -> Rotation:
    at = b.concat([position, b.literal([0])], 0)
    found = []
    for name, function in ROTARY_FUNCTIONS:
        view = RotaryTable(f"{prefix}_{name}", rope, caches.context + caches.chunk, function)
        table = b.constant(b.store.table(view.name, view, "F16"))
        found.append(b.reshape(b.slice_at(table, at, [n, view.n_cols]), n, 1, view.n_cols))
    return Rotation(*found)


def _past(b: Builder, caches: Caches, position: Var, state: Feature | None) -> dict[int, Var]:
    """What convolutions remember; nothing at the start of a conversation, whatever was passed in or kept."""
    if caches.conv_state is None:
        return {}
    given = Var(CONV_IN, Dtype.FLOAT16, caches.conv_state.shape)
    windows = given if state is None else b.read_state(state)
    begun = b.cast(b.binary("greater", position, 0, is_bool=True), Dtype.FLOAT16)
    parts = b.split(b.binary("mul", windows, begun), len(caches.convolutions), 0)
    return dict(zip(caches.convolutions, parts, strict=True))
