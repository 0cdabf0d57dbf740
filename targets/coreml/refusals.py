"""What a package cannot say: refused by block, before anything is planned."""

from __future__ import annotations

from collections.abc import Iterator

from ...graph.blocks import Attention, Block, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError


def refuse_blocks(config: ModelConfig) -> None:
    """Raises UsageError naming the first block of a model that cannot be said, and why."""
    for layer, branches in enumerate(config.layers):
        for branch in branches:
            for what, why in _unsaid(branch.block):
                raise UsageError(f"coreml has no {what} (layer {layer}): {why}")


def _unsaid(block: Block) -> Iterator[tuple[str, str]]:
    if isinstance(block, ShortConv) and not block.is_causal:
        yield "centred short convolution", "its window would hold inputs to come"
    if isinstance(block, Attention) and not block.is_causal:
        yield "attention that sees later tokens", "keys of a call to come are not in its cache"
