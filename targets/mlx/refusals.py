"""What a model's blocks ask for that the class cannot by which mlx-lm, or this house, would run it.

What each class can beside the usual its family states (`MlxCan`); what none of them can is refused of any model. A rope
must be the one that mlx-lm makes of the config which is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np

from ...graph.blocks import Activation, Attention, Branch, Dense, Mixture, Rope, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.families.decoder import window_period
from ...graph.families.family import MlxCan, MlxNames
from ...graph.graph import WeightGraph
from ...graph.rotary import default_rope, inverse_frequencies
from .parameters import mlx_names
from .ropes import rope_made, rope_type

# Tables that differ by less are the same: powers and divisions of float32 in another order.
_SAME_TABLE = 1e-5

Needs = Iterator[tuple[MlxCan | None, str]]


def refuse_inexpressible(graph: WeightGraph, written: Mapping[str, Any]) -> None:
    """Raises UsageError naming every block that has no equal; `written` are the fields of the artifact's config."""
    names, config = mlx_names(graph.config.family), graph.config
    found = [*_needs(graph), *_ropes(config, names, written)]
    missing = list(dict.fromkeys(words for can, words in found if can not in names.can))
    if missing:
        raise UsageError(f"mlx-lm has no {config.family.name} with {', with '.join(missing)}: choose another target")


def _needs(graph: WeightGraph) -> Needs:
    """What the model has beside the usual, and the ability that it takes; None for what no class can."""
    config, can = graph.config, mlx_names(graph.config.family).can
    kinds = {mixer.name for mixer in config.mixers}
    if not graph.is_tied:
        yield MlxCan.OWN_HEAD, "a head other than the embedding"
    if len(kinds) == 1:
        yield MlxCan.ONE_KIND, f"layers that are all {kinds.pop()}"
    if config.logit_scale != 1:
        yield MlxCan.SCALES, "scaled logits"
    if config.embedding_scale != 1:
        is_root = MlxCan.ROOT_SCALE in can and config.embedding_scale == config.hidden_size**0.5
        yield (MlxCan.ROOT_SCALE if is_root else MlxCan.SCALES), "a scaled embedding"
    for branch in config.branches:
        yield from _of_branch(branch)
    for block in config.of_kind(Attention).values():
        yield from _of_attention(block, config.hidden_size)
    yield from _of_windows(config, can)


def _of_branch(branch: Branch) -> Needs:
    block = branch.block
    if branch.norm is None:
        yield None, f"{block.name} without a norm before it"
    if branch.post_norm:
        yield MlxCan.POST_NORMS, "a norm after a block"
    if branch.scale != 1:
        yield MlxCan.SCALES, "scaled residual branches"
    if isinstance(block, ShortConv | Attention) and not block.is_causal:
        yield None, f"{block.name} that looks ahead"
    if isinstance(block, Mixture):
        yield MlxCan.MIXTURES, "a mixture of experts"
    if isinstance(block, Dense) and block.activation is not Activation.SILU:
        yield MlxCan.GELU, f"feed-forwards with {block.activation.value}"


def _of_attention(block: Attention, hidden_size: int) -> Needs:
    if block.q_size != hidden_size:
        yield MlxCan.FREE_HEADS, f"{block.n_heads} heads of {block.head_dim} with hidden_size {hidden_size}"
    if block.qk_norm is None:
        yield MlxCan.PLAIN_HEADS, "attention without norms of queries and keys"
    if block.is_gated:
        yield MlxCan.GATES, "gated heads"
    if block.is_biased:
        yield MlxCan.BIASES, "biased attention"
    if block.score_scale is not None:
        yield MlxCan.SCORE_SCALE, "scores of another scale"
    if block.rope is None:
        yield MlxCan.NO_ROPE, "attention without rotary positions"
    elif block.rope.n_dims < block.head_dim:
        yield MlxCan.PART_TURNS, "rotation of the first numbers of each head alone"


def _of_windows(config: ModelConfig, can: Set[MlxCan]) -> Needs:
    """Either kind of windows that a class may have is enough."""
    windows = {block.window for block in config.of_kind(Attention).values()}
    if windows != {None}:
        is_enough = {
            MlxCan.WINDOWS: True,
            MlxCan.SOME_WINDOWS: None in windows,
            MlxCan.WINDOWS_BY_TURNS: window_period(config) is not None,
        }
        found = next((each for each, fits in is_enough.items() if fits and each in can), MlxCan.WINDOWS)
        yield found, "sliding-window attention" + (" in such layers" if can & is_enough.keys() else "")


def _ropes(config: ModelConfig, names: MlxNames, written: Mapping[str, Any]) -> Needs:
    blocks = config.of_kind(Attention).values()
    whole = dict.fromkeys(block.rope for block in blocks if block.rope and block.window is None)
    windowed = dict.fromkeys(block.rope for block in blocks if block.rope and block.window is not None)
    if len(whole | windowed) > 1:
        yield (MlxCan.WINDOW_ROPE if max(len(whole), len(windowed)) == 1 else None), "ropes that differ"
    for rope in whole | windowed:
        yield from _of_rope(rope, names, written, is_windowed=MlxCan.WINDOW_ROPE in names.can and rope not in whole)


def _of_rope(rope: Rope, names: MlxNames, written: Mapping[str, Any], *, is_windowed: bool) -> Needs:
    if rope.pairs_neighbours:
        yield None, "rotation of neighbours"
    if rope.is_partial:
        yield MlxCan.PAIRS_REST, "rotation of part of a head"
    elif rope != default_rope(rope.theta, rope.n_dims):
        kind = rope_type(written)
        made = None if is_windowed or kind not in names.ropes else rope_made(written, rope)
        if made is None or not _is_same(made, rope):
            yield None, f"rotary positions of type '{kind}' as this config has them"


def _is_same(made: Rope, rope: Rope) -> bool:
    own, other = inverse_frequencies(rope), inverse_frequencies(made)
    return np.allclose(other, own, rtol=_SAME_TABLE, atol=0) and abs(made.factor - rope.factor) <= _SAME_TABLE
