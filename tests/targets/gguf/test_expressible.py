"""What llama.cpp cannot say of a model is refused by block, all of it in one sentence, with its layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lfm_convert.graph.blocks import Attention, Block, Mixture, Norm, Rope, ShortConv
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.rotary import default_rope, proportional_rope
from lfm_convert.targets.gguf.target import TARGET
from support.refusals import refused

NEIGHBOURS = Rope(theta=1e6, inverse_frequencies=default_rope(1e6, 32).inverse_frequencies, pairs_neighbours=True)


def with_blocks(graph: WeightGraph, kind: type[Block], **changes: Any) -> WeightGraph:
    """The graph with every block of a kind changed."""
    layers = tuple(
        tuple(
            replace(branch, block=replace(branch.block, **changes)) if isinstance(branch.block, kind) else branch
            for branch in branches
        )
        for branches in graph.config.layers
    )
    return replace(graph, config=replace(graph.config, layers=layers))


def with_branches(graph: WeightGraph, *, first_only: bool = False, **changes: Any) -> WeightGraph:
    """The graph with the branches of every layer changed, or the first of each."""
    layers = tuple(
        tuple(branch if first_only and i else replace(branch, **changes) for i, branch in enumerate(branches))
        for branches in graph.config.layers
    )
    return replace(graph, config=replace(graph.config, layers=layers))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (Mixture, {"is_normalised": False}, "norm_topk_prob"),
        (ShortConv, {"is_biased": True}, "biases of a short convolution (conv_bias) (layers 0, 2)"),
        (ShortConv, {"is_causal": False}, "a short convolution that sees both ways"),
        (Attention, {"is_causal": False}, "attention that sees both ways"),
        (Attention, {"head_dim": 48}, "4 heads of 48 with hidden_size 128"),
        (Attention, {"window": 16}, "sliding-window attention (layers 1, 3)"),
        (Attention, {"is_gated": True}, "gated heads"),
        (Attention, {"is_biased": True}, "biases of attention"),
        (Attention, {"qk_norm": None}, "a block without norms of queries and keys, which it demands"),
        (Attention, {"rope": None}, "attention without rotary positions"),
        (Attention, {"rope": NEIGHBOURS}, "neighbouring pairs"),
        (Attention, {"rope": proportional_rope(1e6, 32, 0.5)}, "rotary positions of part of a head"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_blocks(moe_graph: WeightGraph, kind: type[Block], changes: dict[str, Any], words: str) -> None:
    with refused("llama.cpp has no representation of", words, "'lfm2moe'", error=UsageError):
        TARGET.plan(with_blocks(moe_graph, kind, **changes), "F16")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm": None}, "attention without a norm before it (layers 1, 3)"),
        ({"scale": 0.5}, "whose outcome is scaled by 0.5"),
        ({"post_norm": Norm(1e-5)}, "a norm after a block"),
        ({"post_norm": Norm(1e-5), "first_only": True}, "demands both or neither"),
    ],
)
def test_branches(moe_graph: WeightGraph, changes: dict[str, Any], words: str) -> None:
    with refused("llama.cpp has no representation of", words, error=UsageError):
        TARGET.plan(with_branches(moe_graph, **changes), "F16")


def test_models(moe_graph: WeightGraph) -> None:
    config = moe_graph.config
    dense_last = replace(config, layers=(*config.layers[1:], config.layers[0]))
    for changed, words in (
        (replace(config, logit_scale=2.0), "scaled logits"),
        (replace(config, layers=config.layers[:1]), "a model without any attention"),
        (dense_last, "a dense feed-forward after a mixture of experts"),
        (replace(config, family=replace(config.family, gguf=None)), "no architecture for LFM2-MoE"),
    ):
        with refused("llama.cpp has no", words, error=UsageError):
            TARGET.plan(replace(moe_graph, config=changed), "F16")


def test_an_architecture_without_experts(dense_graph: WeightGraph, moe_graph: WeightGraph) -> None:
    config = replace(dense_graph.config, layers=moe_graph.config.layers)
    with refused("mixture of experts (layers 1, 2, 3)", "'lfm2'", error=UsageError):
        TARGET.plan(replace(dense_graph, config=config), "F16")


def test_all_at_once(moe_graph: WeightGraph) -> None:
    graph = with_blocks(with_blocks(moe_graph, ShortConv, is_biased=True), Attention, is_gated=True)
    with refused("conv_bias", "gated heads", error=UsageError):
        TARGET.plan(graph, "F16")
