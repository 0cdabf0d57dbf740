"""ExecuTorch's Python runtime agrees with the graph's forward, and forgets what it must."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT

from .conftest import Exported, export
from .int8_forward import Int8Activations

pytestmark = pytest.mark.peers

# In the default set each export is paid once; the other pairs say little more.
BUNDLED = [
    ("dense", "fp32"),
    pytest.param("moe", "fp32", marks=pytest.mark.slow),
]
QUANTS = ("8da4w", "8da8w", "8da4w-emb8", "8da4w-g64", "8da4w-g128-emb8")
QUANTIZED = [
    ("lfm3", "8da4w"),
    ("moe", "8da4w"),
    *(pytest.param("dense", quant, marks=pytest.mark.slow) for quant in QUANTS),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "dense-untied": dense_config(tie_embedding=False),
    "dense-bias": dense_config(conv_bias=True),
    "dense-width-2": dense_config(conv_L_cache=2),
    "dense-width-4": dense_config(conv_L_cache=4),
    "dense-heads-4-1": dense_config(num_key_value_heads=1),
    "moe-scaled": moe_config(routed_scaling_factor=2.5),
    "moe-not-normalised": moe_config(norm_topk_prob=False),
    "moe-no-bias": moe_config(use_expert_bias=False),
}


@pytest.mark.parametrize(("kind", "quant"), BUNDLED)
def test_fp32_logits(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    found = exported(kind, quant)
    runner = found.target.run(found.artifact, threads=1)
    forward = Forward(found.graph)
    tokens = np.random.default_rng(3).integers(0, found.graph.config.vocab_size, 511 + 32).tolist()
    for n in (1, 3, 64, 511):
        (expected,), state = forward.prefill([tokens[:n]])
        np.testing.assert_allclose(runner.call(tokens[:n], 0), expected[-1:], atol=1e-3)
        for step in range(n, n + 32):
            (expected,) = forward.extend(state, [tokens[step : step + 1]])
            np.testing.assert_allclose(runner.call(tokens[step : step + 1], step), expected, atol=1e-3)


@pytest.mark.parametrize(("kind", "quant"), [*BUNDLED, *QUANTIZED])
def test_a_conversation_leaves_nothing_behind(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    """Upstream's LFM2 keeps the conv window: there the second run starts from the first one's end."""
    found = exported(kind, quant)
    runner = found.target.run(found.artifact, threads=1)
    first, second = PROMPT, PROMPT[::-1]
    once, other = runner.logits(first), runner.logits(second)
    np.testing.assert_array_equal(runner.logits(first), once)
    np.testing.assert_array_equal(runner.call(second, 0), other[-1:])
    assert np.abs(once[-1] - other[-1]).max() > 0.1


@pytest.mark.parametrize(("kind", "quant"), [*BUNDLED, *QUANTIZED])
def test_chunks_give_what_the_whole_gives(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    found = exported(kind, quant)
    runner = found.target.run(found.artifact, threads=1)
    whole = runner.logits(PROMPT)
    runner.reset()
    bounds = (0, 1, 3, 6, 10, 11, len(PROMPT))
    chunks = [runner.extend(PROMPT[low:high]) for low, high in itertools.pairwise(bounds)]
    # int8 activations turn a difference in the last bit into one of a step, now and then
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-4 if quant == "fp32" else 0.5)


@pytest.mark.parametrize(("kind", "quant"), QUANTIZED)
def test_quantized_runs_its_own_weights(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    """Against the forward with the artifact's decoded weights and int8 activations."""
    found = exported(kind, quant)
    text = "The weather in the town was better than the year before. What do you think about it?"
    ids = found.graph.tokenizer.encode(text)
    logits = found.target.run(found.artifact, threads=1).logits(ids)
    expected = Int8Activations(found.decoded()).prefill([ids])[0][0]
    cosines = (logits * expected).sum(axis=1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_clear = first - second > 0.1
    np.testing.assert_array_equal(logits.argmax(axis=1)[is_clear], expected.argmax(axis=1)[is_clear])
    unquantized = Forward(found.graph).prefill([ids])[0][0]
    assert np.abs(expected - unquantized).max() > 10 * np.abs(expected - logits).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[name]))
    found = export(graph, "fp32", tmp_path / "out")
    expected = Forward(graph).prefill([PROMPT])[0][0]
    np.testing.assert_allclose(found.target.run(found.artifact, threads=1).logits(PROMPT), expected, atol=1e-4)
    for address, view in found.target.read(found.artifact).items():
        if address[0] is not Role.LM_HEAD or not graph.is_tied:
            weight = next(w for w in graph.weights() if (w.role, w.layer) == address)
            np.testing.assert_array_equal(view.read(), weight.view.read())


@pytest.mark.slow
def test_swapped_weights_are_seen(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Negative control: the same comparison fails when w1 and w3 of one layer change places."""
    gate, up = (dense_graph.layers[2][role] for role in (Role.FFN_GATE, Role.FFN_UP))
    found = export(dense_graph.with_weights({(Role.FFN_GATE, 2): up, (Role.FFN_UP, 2): gate}), "fp32", tmp_path)
    logits = found.target.run(found.artifact, threads=1).logits(PROMPT)
    assert np.abs(logits - Forward(dense_graph).prefill([PROMPT])[0][0]).max() > 0.1
