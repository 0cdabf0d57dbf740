"""What a conversation leaves behind: rows of keys and values in one state, windows of convolutions.

`kv_cache` is float16 [kv_heads, rows, 2 * head_dim, or the next multiple of 32]. A row is one position of one layer, its
key and its value side by side; the rows of a layer lie together:

| attention                | rows                     | content                                                     |
|--------------------------|--------------------------|-------------------------------------------------------------|
| that sees everything     | context + chunk          | row p is position p; padding of a last chunk lies beyond    |
| in a window of W < context | W - 1                  | the last W - 1 positions before the next call, oldest first |

Layers with fewer or smaller heads than the largest leave the rest of their rows unused. Nothing need be cleared: what
lies at positions that a conversation has not reached is never seen.
The convolutions' windows are float16 [convolutions, width - 1, hidden], the oldest position first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...graph.blocks import Attention, ShortConv
from ...graph.config import ModelConfig
from .interface import CONV_STATE, KV_CACHE
from .mil import Dtype, Feature

# States of another last axis fail on the Neural Engine. Source: coremltools issue 2631.
_WIDTH = 32


@dataclass(frozen=True)
class Rows:
    """The rows of one attention layer: `window` is None where it sees everything."""

    start: int
    count: int
    window: int | None

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Caches:
    """The rows of each attention layer, the place of each convolution among them, and both as a function has them.

    `kv_cache` or `conv_state` is None of a model that has nothing to keep there.
    """

    rows: Mapping[int, Rows]
    convolutions: tuple[int, ...]
    kv_cache: Feature | None
    conv_state: Feature | None
    context: int
    chunk: int


def lay_out(config: ModelConfig, layers: range, *, context: int, chunk: int) -> Caches:
    """The caches of layers of a model for so many positions, read in chunks of at most so many."""
    attention = {i: block for i, block in config.of_kind(Attention).items() if i in layers}
    convolutions = {i: block for i, block in config.of_kind(ShortConv).items() if i in layers}
    rows, end = {}, 0
    for layer, block in attention.items():
        window = block.window if block.window is not None and block.window < context else None
        rows[layer] = Rows(end, context + chunk if window is None else window - 1, window)
        end = rows[layer].stop
    heads = max((block.n_kv_heads for block in attention.values()), default=0)
    size = max((block.head_dim for block in attention.values()), default=0)
    past = max((block.width for block in convolutions.values()), default=1) - 1
    width = -(-2 * size // _WIDTH) * _WIDTH
    kv_shape, conv_shape = (heads, end, width), (len(convolutions), past, config.hidden_size)
    return Caches(
        rows=rows,
        convolutions=tuple(convolutions),
        kv_cache=Feature(KV_CACHE, Dtype.FLOAT16, kv_shape) if end else None,
        conv_state=Feature(CONV_STATE, Dtype.FLOAT16, conv_shape) if past else None,
        context=context,
        chunk=chunk,
    )
