"""What a model's blocks ask for that no class computes by which mlx-lm would run it.

| asked for | mlx-lm's own classes | `model.py` |
|---|---|---|
| a head of its own, heads of any size, only one kind of mixer, norms after blocks | no | yes |
| attention in a window, gated, biased, with part of each head at rest | no | yes |
| a choice among experts | yes | no |
| scaled branches, embedding or logits; other norms or rotations; a look ahead | no | no |
"""

from __future__ import annotations

from collections.abc import Iterator

from ...graph.blocks import Attention, Branch, Mixture, Rope, ShortConv
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph


def refuse_inexpressible(graph: WeightGraph, *, is_released: bool) -> None:
    """Raises UsageError naming every block that has no equal; `is_released` is what the family says of mlx-lm."""
    of_class = _beyond_mlx_lm(graph) if is_released else _beyond_own(graph)
    missing = list(dict.fromkeys((*of_class, *_beyond_both(graph))))
    if missing:
        raise UsageError(
            f"mlx-lm has no {graph.config.family.name} with {', with '.join(missing)}: choose another target"
        )


def _beyond_mlx_lm(graph: WeightGraph) -> Iterator[str]:
    config = graph.config
    if not graph.is_tied:
        yield "a head other than the embedding"
    kinds = {mixer.name for mixer in config.mixers}
    if len(kinds) == 1:
        yield f"layers that are all {kinds.pop()}"
    if any(branch.post_norm for branch in config.branches):
        yield "a norm after a block"
    for block in config.of_kind(Attention).values():
        if block.q_size != config.hidden_size:
            yield f"{block.n_heads} heads of {block.head_dim} with hidden_size {config.hidden_size}"
        if block.window is not None:
            yield "sliding-window attention"
        if block.is_gated:
            yield "gated heads"
        if block.is_biased:
            yield "biased attention"
        if block.rope and block.rope.is_partial:
            yield "rotation of part of a head"


def _beyond_own(graph: WeightGraph) -> Iterator[str]:
    if graph.config.of_kind(Mixture):
        yield "a mixture of experts"


def _beyond_both(graph: WeightGraph) -> Iterator[str]:
    config = graph.config
    if config.embedding_scale != 1:
        yield "a scaled embedding"
    if config.logit_scale != 1:
        yield "scaled logits"
    for branch in config.branches:
        yield from _of_branch(branch)


def _of_branch(branch: Branch) -> Iterator[str]:
    block = branch.block
    if branch.norm is None:
        yield f"{block.name} without a norm before it"
    if branch.scale != 1:
        yield "scaled residual branches"
    if isinstance(block, ShortConv | Attention) and not block.is_causal:
        yield f"{block.name} that looks ahead"
    if isinstance(block, Attention):
        if block.qk_norm is None:
            yield "attention without norms of queries and keys"
        yield from _of_rope(block.rope)


def _of_rope(rope: Rope | None) -> Iterator[str]:
    if rope is None:
        yield "attention without rotary positions"
    elif rope.factor != 1 or rope.pairs_neighbours:
        yield "rotation of neighbours, or with a factor"
