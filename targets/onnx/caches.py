"""How much of the past each attention layer keeps: all of it, or what its window sees.

A cache of a window holds what transformers' own holds, so that either continues the other's. onnxruntime-genai gives
every layer a cache of one length instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...graph.blocks import Attention
from ...graph.config import ModelConfig

# Layer -> positions that its cache keeps, the last ones; None for all.
Kept = Mapping[int, int | None]


def kept_positions(config: ModelConfig, *, is_whole: bool) -> Kept:
    """What a new token sees beside itself, of each attention layer; all, if caches are to be whole.

    The first layer's cache holds all positions whatever its window: clients count there the tokens they have seen.
    """
    blocks = config.of_kind(Attention)
    return {
        i: None if is_whole or block.window is None or i == min(blocks) else max(1, block.window - 1)
        for i, block in blocks.items()
    }
