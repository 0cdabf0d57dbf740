"""ONNX Runtime agrees with the graph's forward: every config variant, cached, padded, generated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.target import get_target
from support import card_loop
from support.artifacts import write_artifact
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT

pytestmark = pytest.mark.peers

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": dense_config(),
    "dense-untied": dense_config(tie_embedding=False),
    "dense-bias": dense_config(conv_bias=True),
    "dense-width-2": dense_config(conv_L_cache=2),
    "dense-width-4": dense_config(conv_L_cache=4),
    "dense-heads-4-1": dense_config(num_key_value_heads=1),
    "dense-heads-4-4": dense_config(num_key_value_heads=4),
    "moe": moe_config(),
    "moe-scaled": moe_config(routed_scaling_factor=2.5),
    "moe-not-normalised": moe_config(norm_topk_prob=False),
    "moe-no-bias": moe_config(use_expert_bias=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_fp32_logits(name: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[name]))
    runner = get_target("onnx").run(write_artifact(graph, "onnx", "fp32", tmp_path / "out"), threads=1)
    expected = Forward(graph).prefill([PROMPT])[0][0]
    np.testing.assert_allclose(runner.logits(PROMPT), expected, atol=1e-4)
    runner.reset()
    steps = [runner.extend(PROMPT[:3]), runner.extend(PROMPT[3:9])]
    steps += [runner.extend([token]) for token in PROMPT[9:]]
    np.testing.assert_allclose(np.concatenate(steps), expected, atol=1e-4)


def test_swapped_weights_are_seen(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Negative control: the same comparison fails when w1 and w3 of one layer change places."""
    from lfm_convert.graph.roles import Role

    gate, up = (dense_graph.layers[2][role] for role in (Role.FFN_GATE, Role.FFN_UP))
    swapped = dense_graph.with_weights({(Role.FFN_GATE, 2): up, (Role.FFN_UP, 2): gate})
    runner = get_target("onnx").run(write_artifact(swapped, "onnx", "fp32", tmp_path), threads=1)
    difference = np.abs(runner.logits(PROMPT) - Forward(dense_graph).prefill([PROMPT])[0][0]).max()
    assert difference > 0.1


@pytest.mark.parametrize("quant", ["q4", "q4_mixed", "q4f16"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_quantized_runs_its_own_weights(kind: str, quant: str, tmp_path: Path) -> None:
    """Against the forward with the artifact's decoded weights: what is left is int8 activations."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[kind]))
    artifact = write_artifact(graph, "onnx", quant, tmp_path / "out")
    target = get_target("onnx")
    decoded = Forward(graph.with_weights(target.read(artifact))).prefill([PROMPT])[0][0]
    found = target.run(artifact, threads=1).logits(PROMPT)
    error = np.linalg.norm(found - decoded) / np.linalg.norm(decoded)
    unquantized = Forward(graph).prefill([PROMPT])[0][0]
    assert error < 0.12 < np.linalg.norm(found - unquantized) / np.linalg.norm(unquantized)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_8_bit_is_near(kind: str, tmp_path: Path) -> None:
    """What is left is int8 activations, in a random model that is as sensitive as can be."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[kind]))
    found = get_target("onnx").run(write_artifact(graph, "onnx", "q8", tmp_path / "out"), threads=1).logits(PROMPT)
    expected = Forward(graph).prefill([PROMPT])[0][0]
    assert np.linalg.norm(found - expected) < 0.12 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["dense", "dense-bias", "dense-width-4", "moe"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_unpadded(kind: str, side: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[kind]))
    artifact = write_artifact(graph, "onnx", "fp32", tmp_path / "out")
    session = onnxruntime.InferenceSession(artifact.path)
    short, n_pad = PROMPT[:9], len(PROMPT) - 9
    padding = [0] * n_pad
    row = padding + short if side == "left" else short + padding
    mask = [0] * n_pad + [1] * 9 if side == "left" else [1] * 9 + [0] * n_pad
    feeds = {
        "input_ids": np.array([PROMPT, row], np.int64),
        "attention_mask": np.array([[1] * len(PROMPT), mask], np.int64),
        "num_logits_to_keep": np.array(0, np.int64),
        **_empty_caches(session, batch=2),
    }
    logits, *present = session.run(None, feeds)
    forward = Forward(graph)
    kept = logits[1, n_pad:] if side == "left" else logits[1, :9]
    np.testing.assert_allclose(logits[0], forward.prefill([PROMPT])[0][0], atol=1e-4)
    np.testing.assert_allclose(kept, forward.prefill([short])[0][0], atol=1e-4)
    if side == "left":  # the next token sees the padding's caches
        feeds |= dict(zip((entry.name for entry in session.get_inputs()[3:]), present, strict=True))
        feeds["input_ids"] = np.array([PROMPT[:1], PROMPT[:1]], np.int64)
        feeds["attention_mask"] = np.concatenate([feeds["attention_mask"], np.ones((2, 1), np.int64)], axis=1)
        continued = session.run(["logits"], feeds)[0][1]
        np.testing.assert_allclose(continued, forward.prefill([[*short, PROMPT[0]]])[0][0][-1:], atol=1e-4)


def _empty_caches(session: onnxruntime.InferenceSession, *, batch: int) -> dict[str, np.ndarray]:
    caches = {}
    for entry in session.get_inputs()[3:]:
        shape = [batch, *(0 if isinstance(size, str) else size for size in entry.shape[1:])]
        caches[entry.name] = np.zeros(shape, np.float32)
    return caches


def test_num_logits_to_keep(dense_graph: WeightGraph, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(write_artifact(dense_graph, "onnx", "fp32", tmp_path).path)
    feeds = {
        "input_ids": np.array([PROMPT], np.int64),
        "attention_mask": np.ones((1, len(PROMPT)), np.int64),
        **_empty_caches(session, batch=1),
    }
    every = session.run(["logits"], {**feeds, "num_logits_to_keep": np.array(0, np.int64)})[0]
    for n in (1, 2, len(PROMPT)):
        kept = session.run(["logits"], {**feeds, "num_logits_to_keep": np.array(n, np.int64)})[0]
        np.testing.assert_allclose(kept, every[:, -n:], atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_model_card_loop_gives_the_reference_tokens(kind: str, tmp_path: Path) -> None:
    from lfm_convert.convert import bundled

    graph = open_graph(bundled.path(kind))
    write_artifact(graph, "onnx", "fp32", tmp_path)
    prompt = graph.tokenizer.encode("The statement")
    expected = Forward(graph).generate(prompt, max_new_tokens=100, stop=graph.config.eos_token_ids)
    command = [sys.executable, card_loop.__file__, str(tmp_path), "model.onnx", "100", *map(str, prompt)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [int(i) for i in printed.split()] == expected
