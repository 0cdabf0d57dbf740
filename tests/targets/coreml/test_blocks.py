"""Every kind of block against the graph's forward: checkpoints and blocks that nobody published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.blocks import Attention, Branch, Norm, ShortConv
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.rotary import default_rope
from lfm_convert.targets.target import get_target
from support.checkpoints import dense_25_config, dense_config, lfm3_config, make_checkpoint, moe_config

from .packages import check, make

pytestmark = pytest.mark.peers

CONTEXT, CHUNK = 64, 8
# Around windows of 16: chunks whole and padded, tokens one by one.
PIECES = [8, 3, 1, 1, 8, 8, 7, 1, 2, 8, 8, 1, 1, 4]
FULL, SLIDING = "full_attention", "sliding_attention"
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": dense_config(),
    "dense-later-spelling": dense_25_config(),
    "untied": dense_25_config(tie_word_embeddings=False),
    "biased-convolution": dense_config(conv_bias=True),
    "attention-only": dense_config(attention=(0, 1, 2, 3)),
    "convolution-only": dense_config(attention=()),
    "mixture": moe_config(routed_scaling_factor=2.5),
    "mixture-plain": moe_config(use_expert_bias=False, norm_topk_prob=False, num_experts_per_tok=1),
    "mixture-of-all": moe_config(num_experts=4, num_experts_per_tok=4),
    "lfm3": lfm3_config(),
    "lfm3-no-gate": lfm3_config(use_attention_gate=False),
    "lfm3-no-sandwich": lfm3_config(use_sandwich_norm=False),
    "lfm3-heads-4-1": lfm3_config(num_key_value_heads=1),
    "lfm3-heads-4-4": lfm3_config(num_key_value_heads=4),
    "lfm3-heads-of-40": lfm3_config(head_dim=40),
    "lfm3-window-1": lfm3_config(sliding_window=1),
    "lfm3-window-2": lfm3_config(sliding_window=2),
    "lfm3-window-of-the-context": lfm3_config(sliding_window=CONTEXT),
    "lfm3-window-just-below": lfm3_config(sliding_window=CONTEXT - 1),
    "lfm3-sliding-only": lfm3_config(layer_types=[SLIDING] * 3, num_hidden_layers=3),
    "lfm3-window-1-only": lfm3_config(layer_types=[SLIDING, "conv"], num_hidden_layers=2, sliding_window=1),
    "lfm3-no-convolution": lfm3_config(layer_types=[FULL, SLIDING, FULL], num_hidden_layers=3),
    "lfm3-biased": lfm3_config(attention_bias=True, conv_bias=True),
    "lfm3-width-2": lfm3_config(conv_L_cache=2),
}


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WeightGraph]:
    known: dict[str, WeightGraph] = {}

    def opened(name: str) -> WeightGraph:
        if name not in known:
            known[name] = open_graph(make_checkpoint(tmp_path_factory.mktemp(name), VARIANTS[name], dtype="float16"))
        return known[name]

    return opened


def check_graph(graph: WeightGraph, folder: Path, quant: str = "fp16", **options: Any) -> None:
    check(make(graph, quant, folder, context=CONTEXT, chunk=CHUNK, **options), PIECES)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    check_graph(graph_of(name), tmp_path)


@pytest.mark.parametrize("quant", ["int8", "int4", "int4-pal"])
@pytest.mark.parametrize("name", ["dense", "mixture", "lfm3"])
def test_quants(name: str, quant: str, graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """Rows of 200, which no block divides, and four rows of gates, which fill no table, among them."""
    check_graph(graph_of(name), tmp_path, quant)


@pytest.mark.parametrize("name", ["convolution-only", "attention-only", "lfm3"])
def test_all_states(name: str, graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    check_graph(graph_of(name), tmp_path, coreml_state="all")


def _changed(graph: WeightGraph, change: Callable[[Branch, int], Branch]) -> WeightGraph:
    """The same weights in other blocks."""
    layers = tuple(
        replace(layer, branches=tuple(change(branch, layer.index) for branch in layer.branches))
        for layer in graph.layers
    )
    config = replace(graph.config, layers=tuple(layer.branches for layer in layers))
    return replace(graph, config=config, layers=layers)


def _with_attention(graph: WeightGraph, **fields: Any) -> WeightGraph:
    def change(branch: Branch, _: int) -> Branch:
        is_attention = isinstance(branch.block, Attention)
        return replace(branch, block=replace(branch.block, **fields)) if is_attention else branch

    return _changed(graph, change)


def _narrower(branch: Branch, layer: int) -> Branch:
    """Windows of their own lengths, one for each layer."""
    is_attention = isinstance(branch.block, Attention)
    return replace(branch, block=replace(branch.block, window=5 + layer)) if is_attention else branch


def test_blocks_that_no_checkpoint_has(graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """Heads that turn otherwise or not at all, branches without norms or scaled, vocabularies that are scaled."""
    graph = graph_of("lfm3")
    rope = next(iter(graph.config.of_kind(Attention).values())).rope
    assert rope is not None
    others = {
        "no-rope": _with_attention(graph, rope=None),
        "neighbours": _with_attention(graph, rope=replace(rope, pairs_neighbours=True)),
        "in-part": _with_attention(graph, rope=default_rope(rope.theta, rope.n_dims // 2)),
        "neighbours-in-part": _with_attention(
            graph, rope=replace(default_rope(rope.theta, rope.n_dims // 2), pairs_neighbours=True)
        ),
        "longer": _with_attention(graph, rope=replace(rope, factor=1.25)),
        "no-head-norms": _with_attention(graph, qk_norm=None),
        "windows": _changed(graph, _narrower),
        "scaled": _changed(graph, lambda branch, _: replace(branch, scale=0.5)),
        "no-norm": _changed(graph, lambda branch, _: replace(branch, norm=None, scale=0.1)),
        "other-eps": _changed(graph, lambda branch, _: replace(branch, post_norm=Norm(eps=0.1))),
        "vocabulary": replace(graph, config=replace(graph.config, embedding_scale=4.0, logit_scale=0.25)),
    }
    for name, other in others.items():
        check_graph(other, tmp_path / name)


def test_layers_of_different_sizes(graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """Two models' layers in one: other numbers of key heads and their sizes, other widths of convolutions."""
    first, second = graph_of("lfm3"), graph_of("lfm3-heads-4-1")
    third = graph_of("lfm3-width-2")
    layers = tuple(replace(chosen.layers[i]) for i, chosen in enumerate((first, third, first, second, second, third)))
    config = replace(first.config, layers=tuple(layer.branches for layer in layers))
    assert {block.width for block in config.of_kind(ShortConv).values()} == {2, 7}
    check_graph(replace(first, config=config, layers=layers), tmp_path)


@pytest.mark.parametrize(
    ("block", "what"), [(Attention, "attention that sees later tokens"), (ShortConv, "centred short convolution")]
)
def test_a_look_ahead_is_refused(block: type, what: str, graph_of: Callable[[str], WeightGraph]) -> None:
    def change(branch: Branch, _: int) -> Branch:
        return (
            replace(branch, block=replace(branch.block, is_causal=False)) if isinstance(branch.block, block) else branch
        )

    with pytest.raises(UsageError, match=f"coreml has no {what} \\(layer"):
        get_target("coreml").plan(_changed(graph_of("dense"), change), "fp16")
