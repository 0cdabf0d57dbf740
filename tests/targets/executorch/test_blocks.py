"""Every kind of block against the graph's forward, as torch runs the module: variants by the dozen, no export."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.blocks import Attention, Branch, Norm, Rope
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.rotary import default_rope, inverse_frequencies
from support.checkpoints import dense_config, lfm3_config, make_checkpoint, moe_config

pytestmark = pytest.mark.peers
pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')

CONTEXT = 128
TOKENS = np.random.default_rng(15).integers(0, 512, 100).tolist()
# As texts come: at once, token by token, and in pieces around a window of 16.
PIECES = {"whole": [100], "steps": [1] * 40, "pieces": [15, 1, 1, 16, 17, 2, 33, 1, 14], "long first": [90, 1, 1, 8]}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": lfm3_config(),
    "no-gate": lfm3_config(use_attention_gate=False),
    "no-sandwich": lfm3_config(use_sandwich_norm=False),
    "neither": lfm3_config(use_attention_gate=False, use_sandwich_norm=False),
    "heads-4-1": lfm3_config(num_key_value_heads=1),
    "heads-4-4": lfm3_config(num_key_value_heads=4),
    "window-1": lfm3_config(sliding_window=1),
    "window-2": lfm3_config(sliding_window=2),
    "window-99": lfm3_config(sliding_window=99),
    "window-of-the-context": lfm3_config(sliding_window=CONTEXT),
    "window-beyond": lfm3_config(sliding_window=1000),
    "sliding-only": lfm3_config(layer_types=["sliding_attention"] * 3, num_hidden_layers=3),
    "biased": lfm3_config(attention_bias=True, conv_bias=True),
    "biased-no-gate": lfm3_config(attention_bias=True, use_attention_gate=False),
    "width-2": lfm3_config(conv_L_cache=2),
    "untied": lfm3_config(tie_word_embeddings=False),
    "dense": dense_config(),
    "mixture": moe_config(routed_scaling_factor=2.5),
}


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WeightGraph]:
    def opened(name: str) -> WeightGraph:
        return open_graph(make_checkpoint(tmp_path_factory.mktemp(name), VARIANTS[name], dtype="float32"))

    return opened


def ends(sizes: list[int]) -> list[list[int]]:
    """The tokens in pieces of these sizes."""
    bounds = [0, *itertools.accumulate(sizes)]
    return [TOKENS[low:high] for low, high in itertools.pairwise(bounds)]


def eager(graph: WeightGraph, folder: Path) -> Any:
    from support.executorch_eager import EagerModel

    return EagerModel(graph, folder, context=CONTEXT)


def reference(graph: WeightGraph, pieces: list[list[int]]) -> Float32:
    """Logits of the last token of each piece."""
    rows = Forward(graph).prefill([[token for piece in pieces for token in piece]])[0][0]
    return rows[np.cumsum([len(piece) for piece in pieces]) - 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """One module for all ways of reading, each from position 0: none leaves anything behind."""
    graph = graph_of(name)
    model = eager(graph, tmp_path)
    for sizes in PIECES.values():
        pieces = ends(sizes)
        np.testing.assert_allclose(model.logits(pieces), reference(graph, pieces), atol=1e-4)


def _changed(graph: WeightGraph, change: Callable[[Branch], Branch]) -> WeightGraph:
    """The same weights in other blocks."""
    layers = tuple(
        replace(layer, branches=tuple(change(branch) for branch in layer.branches)) for layer in graph.layers
    )
    config = replace(graph.config, layers=tuple(layer.branches for layer in layers))
    return replace(graph, config=config, layers=layers)


def _with_attention(graph: WeightGraph, **fields: Any) -> WeightGraph:
    def change(branch: Branch) -> Branch:
        is_full = isinstance(branch.block, Attention) and branch.block.window is None
        return replace(branch, block=replace(branch.block, **fields)) if is_full else branch

    return _changed(graph, change)


def _partial_in_pairs_of_a_part(rope: Rope) -> Rope:
    """Frequencies of half a head, as a rotation of that half has them."""
    half = default_rope(rope.theta, len(rope.inverse_frequencies)).inverse_frequencies
    return replace(rope, inverse_frequencies=(*half, *(0.0,) * len(half)))


@pytest.mark.parametrize("reading", ["whole", "part"])
def test_wrong_readings_of_the_rope_are_seen(
    reading: str, graph_of: Callable[[str], WeightGraph], tmp_path: Path
) -> None:
    graph = graph_of("published")
    rope = next(b.rope for b in graph.config.of_kind(Attention).values() if b.window is None)
    assert rope is not None and 2 * np.count_nonzero(inverse_frequencies(rope)) == len(rope.inverse_frequencies)
    wrong = default_rope(rope.theta, 48) if reading == "whole" else _partial_in_pairs_of_a_part(rope)
    model = eager(_with_attention(graph, rope=wrong), tmp_path)
    pieces = ends([1, 63])
    logits, expected = model.logits(pieces), reference(graph, pieces)
    np.testing.assert_allclose(logits[0], expected[0], atol=1e-4)  # at position 0 nothing turns
    assert np.abs(logits[1] - expected[1]).max() > 0.01


@pytest.mark.parametrize("window", [15, 17])
def test_a_wrong_window_is_seen(window: int, graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    graph = graph_of("published")

    def change(branch: Branch) -> Branch:
        is_sliding = isinstance(branch.block, Attention) and branch.block.window is not None
        return replace(branch, block=replace(branch.block, window=window)) if is_sliding else branch

    pieces = ends([15, 1, 48])
    difference = np.abs(eager(_changed(graph, change), tmp_path).logits(pieces) - reference(graph, pieces)).max(axis=1)
    assert difference[0] < 1e-4 and difference[2] > 1e-3


def test_blocks_that_no_checkpoint_has(graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """Heads that do not turn, heads without norms, branches and vocabularies that are scaled."""
    graph = graph_of("published")
    rope = next(iter(graph.config.of_kind(Attention).values())).rope
    assert rope is not None
    others = {
        "no-rope": _with_attention(graph, rope=None),
        "no-head-norms": _with_attention(graph, qk_norm=None),
        "neither": _with_attention(graph, rope=None, qk_norm=None),
        "in-part": _with_attention(graph, rope=default_rope(rope.theta, rope.n_dims // 2)),
        "in-part-no-head-norms": _with_attention(graph, rope=default_rope(rope.theta, rope.n_dims // 2), qk_norm=None),
        "longer": _with_attention(graph, rope=replace(rope, factor=1.25)),
        "scaled": _changed(graph, lambda branch: replace(branch, scale=0.5)),
        "scaled-bare": _changed(graph, lambda branch: replace(branch, scale=0.5, post_norm=None)),
        "other-eps": _changed(graph, lambda branch: replace(branch, post_norm=Norm(eps=0.1))),
        "vocabulary": replace(graph, config=replace(graph.config, embedding_scale=4.0, logit_scale=0.25)),
    }
    pieces = ends([20, 1, 17])
    plain = reference(graph, pieces)
    for name, other in others.items():
        expected = reference(other, pieces)
        assert np.abs(expected - plain).max() > 1e-3, name
        np.testing.assert_allclose(eager(other, tmp_path / name).logits(pieces), expected, atol=1e-4, err_msg=name)


def test_the_ring_is_as_long_as_the_window(graph_of: Callable[[str], WeightGraph], tmp_path: Path) -> None:
    """Caches hold the window or the context, whichever is less, and inputs of convolutions what taps reach."""
    module = eager(graph_of("published"), tmp_path)._module
    assert [block.keys.shape[1] for block in module.blocks if hasattr(block, "keys")] == [CONTEXT, 16]
    assert {block.window.shape[1] for block in module.blocks if hasattr(block, "taps")} == {6}
