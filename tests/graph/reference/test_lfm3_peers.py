"""LFM3 against transformers in float32, with the config labelled as the model was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.blocks import Attention, Branch, Rope
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.graph.rotary import default_rope, inverse_frequencies
from support import lfm3
from support.checkpoints import lfm3_config, make_checkpoint
from support.safetensors_files import edit_tensors
from support.transformers_peer import logits_of

pytestmark = pytest.mark.peers

MAX_DIFFERENCE = 1e-4
PROMPT = lfm3.prompt(3)

VARIANTS: dict[str, dict[str, Any]] = {
    **lfm3.VARIANTS,
    "biased attention": {"attention_bias": True},
    "biased convolution": {"conv_bias": True},
    "other eps": {"norm_eps": 0.1},
}


def relabelled(folder: Path) -> dict[str, Any]:
    """The rope parameters with the name under which transformers builds the trained frequencies."""
    config = open_graph(folder, weights=False).config
    return {"rope_parameters": config.family.hub_fields(config)["rope_parameters"]}


def ours(graph: WeightGraph, chunks: Sequence[int] = ()) -> np.ndarray:
    """Logits of the prompt, in pieces that end at these positions."""
    forward, state, rows = Forward(graph), State(1), []
    for low, high in zip((0, *chunks), (*chunks, len(PROMPT)), strict=True):
        rows += forward.extend(state, [PROMPT[low:high]])
    return np.concatenate(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant: str, tmp_path: Path, record_property: Any) -> None:
    folder = make_checkpoint(tmp_path, lfm3_config(**VARIANTS[variant]))
    expected, graph = logits_of(folder, PROMPT, **relabelled(folder)), open_graph(folder)
    for chunks in ((), (20, 37), (1, 2, 3, 40), tuple(range(1, len(PROMPT)))):
        difference = float(np.abs(ours(graph, chunks) - expected).max())
        record_property(f"in {len(chunks) + 1} pieces", difference)
        assert difference <= MAX_DIFFERENCE


def with_rope(graph: WeightGraph, rope: Rope) -> WeightGraph:
    """The graph with another rope in its full attention."""

    def changed(branch: Branch) -> Branch:
        is_full = isinstance(branch.block, Attention) and branch.block.window is None
        return replace(branch, block=replace(branch.block, rope=rope)) if is_full else branch

    layers = tuple(replace(layer, branches=tuple(map(changed, layer.branches))) for layer in graph.layers)
    return replace(graph, layers=layers)


@pytest.mark.parametrize("reading", ["as it says", "by half the head"])
def test_the_wrong_readings_of_the_rope_differ(reading: str, tmp_path: Path) -> None:
    """'default' turns all pairs; a rotation of the first half of the head pairs other elements, by other angles."""
    folder = make_checkpoint(tmp_path, lfm3_config())
    graph = open_graph(folder)
    right = graph.config.first(Attention)
    assert right is not None and right.rope is not None and right.rope.n_turning == right.head_dim // 4
    theta, size = right.rope.theta, right.head_dim
    if reading == "as it says":
        expected = logits_of(folder, PROMPT)  # the file's own label
        assert np.abs(ours(with_rope(graph, default_rope(theta, size))) - expected).max() <= MAX_DIFFERENCE
    else:
        half = default_rope(theta, size // 2).inverse_frequencies
        rope = Rope(theta=theta, inverse_frequencies=(*half, *(0.0,) * len(half)))
        expected = ours(with_rope(graph, rope))
    assert np.abs(ours(graph) - expected).max() > 100 * MAX_DIFFERENCE


def test_frequencies_are_transformers_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig
    from transformers.models.lfm3.modeling_lfm3 import Lfm3RotaryEmbedding

    folder = make_checkpoint(tmp_path, lfm3_config(head_dim=128))
    config = AutoConfig.from_pretrained(folder, **relabelled(folder))
    theirs = dict(Lfm3RotaryEmbedding(config).named_buffers())
    for block in open_graph(folder).config.of_kind(Attention).values():
        kind = lfm3.SLIDING if block.window else lfm3.FULL
        assert block.rope is not None
        assert torch.equal(theirs[f"{kind}_inv_freq"], torch.from_numpy(inverse_frequencies(block.rope)))


def test_the_label_is_read_as_trained_and_said(tmp_path: Path) -> None:
    (note,) = (n for n in open_graph(make_checkpoint(tmp_path, lfm3_config())).notes if "rope" in n)
    assert "'default'" in note and "'proportional'" in note


def test_either_name_of_the_gate(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, lfm3_config())
    before = ours(open_graph(folder))

    def rename(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".gate_proj." in name]:
            tensors[name.replace("gate_proj", "g_proj")] = tensors.pop(name)

    edit_tensors(folder / "model.safetensors", rename)
    assert np.array_equal(ours(open_graph(folder)), before)
