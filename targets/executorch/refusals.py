"""What the module has no emitter for: refused by block, before anything is planned."""

from __future__ import annotations

from collections.abc import Iterator

from ...graph.blocks import Attention, Branch, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError


def refuse_blocks(config: ModelConfig) -> None:
    """Raises UsageError naming the first block of a model that cannot be said, and why."""
    for layer, branches in enumerate(config.layers):
        for branch in branches:
            for what, why in _unsaid(branch):
                raise UsageError(f"executorch has no {what} (layer {layer}): {why}")


def _unsaid(branch: Branch) -> Iterator[tuple[str, str]]:
    """Each as a name, and what would be needed or is missing."""
    block = branch.block
    if branch.norm is None:
        yield f"{block.name} without a norm before it", "the region that begins it takes that norm"
    if isinstance(block, ShortConv) and not block.is_causal:
        yield "centred short convolution", "its state would hold inputs to come"
    if isinstance(block, Attention):
        yield from _unsaid_of_attention(block)


def _unsaid_of_attention(block: Attention) -> Iterator[tuple[str, str]]:
    if not block.is_causal:
        yield "attention that sees later tokens", "the operator custom_sdpa is causal"
    if block.rope and block.rope.pairs_neighbours:
        yield "rotation of neighbouring pairs", "a region turns the halves of a head"
