"""LFM3 files in a llama.cpp that knows them, against the graph's own forward pass."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.rotary import default_rope
from lfm_convert.quantize.policy import Policy
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.gguf.wllama import install
from lfm_convert.targets.target import Runner
from support.checkpoints import lfm3_config
from support.graphs import half_the_head, with_rope
from support.refusals import refused

pytestmark = pytest.mark.peers
if install.missing():
    pytest.skip("wllama is not installed: make wllama", allow_module_level=True)

# Layers: conv conv full conv sliding conv full conv. The prompt is three windows long.
SMALL = lfm3_config(hidden_size=256, num_hidden_layers=8, head_dim=64, intermediate_size=512)
PROMPT = np.random.default_rng(3).integers(14, 512, 3 * SMALL["sliding_window"]).tolist()
N_GREEDY = 40
TEXTS = ("Hello world", "<|im_start|>user\nHi<|im_end|>\n", "12345 67\n\n")
MAX_DIFFERENCE = 1e-4
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "no norms after blocks": {"use_sandwich_norm": False},
    "heads smaller than the hidden size": {"head_dim": 48},
    "heads larger than the hidden size": {"head_dim": 80},
    "keys and values of every head": {"num_key_value_heads": 4},
    "untied": {"tie_word_embeddings": False},
    "windows only": {"layer_types": ["conv", "sliding_attention", "conv", "sliding_attention"] * 2},
    "rows without a token": {"vocab_size": 640},
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected(graph: WeightGraph) -> tuple[list[int], np.ndarray]:
    """The greedy continuation of the prompt, and log-probabilities of every position."""
    forward = Forward(graph)
    logits, state = forward.prefill([PROMPT])
    rows, ids = [np.asarray(logits[0])], []
    for _ in range(N_GREEDY):
        ids.append(int(rows[-1][-1].argmax()))
        rows.append(np.asarray(forward.extend(state, [ids[-1:]])[0]))
    return ids, log_softmax(np.concatenate(rows))


def continued(runner: Runner) -> tuple[list[int], np.ndarray]:
    """As `expected`, by a runner."""
    rows, ids = [runner.logits(PROMPT)], list[int]()
    for _ in range(N_GREEDY):
        ids.append(int(rows[-1][-1].argmax()))
        rows.append(runner.extend(ids[-1:]))
    return ids, log_softmax(np.concatenate(rows))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_graphs(make_graph: Any, write_quant: Any, record_property: Any, variant: str) -> None:
    graph = make_graph({**SMALL, **VARIANTS[variant]}, dtype="float32")
    with closing(TARGET.run(write_quant(graph, "F32"), threads=1)) as runner:
        ids, found = continued(runner)
    wanted_ids, wanted = expected(graph)
    record_property("max |Δ logprob|", float(np.abs(found - wanted).max()))
    assert ids == wanted_ids
    assert np.abs(found - wanted).max() <= MAX_DIFFERENCE


def test_the_bundled_model(write_quant: Any) -> None:
    graph = open_graph(bundled.path("lfm3"))
    assert graph.tokenizer is not None
    ids = graph.tokenizer.encode("The harbour wakes before the town does. " * 8)
    with closing(TARGET.run(write_quant(graph, "F32"), threads=1)) as runner:
        found = log_softmax(runner.logits(ids))
        assert all(runner.tokenize(text) == graph.tokenizer.encode(text) for text in TEXTS)
    assert np.abs(found - log_softmax(np.asarray(Forward(graph).prefill([ids])[0][0]))).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("reading", ["as it says", "by half the head"])
def test_the_wrong_readings_of_the_rope_show(make_graph: Any, write_quant: Any, reading: str) -> None:
    """A file with that rope runs as the graph that has it, and not as the model was trained."""
    graph = make_graph(SMALL, dtype="float32")
    wrong = with_rope(graph, default_rope(1e6, 64) if reading == "as it says" else half_the_head(64))
    with closing(TARGET.run(write_quant(wrong, "F32"), threads=1)) as runner:
        logits = log_softmax(runner.logits(PROMPT))
    as_written, as_trained = (log_softmax(np.asarray(Forward(g).prefill([PROMPT])[0][0])) for g in (wrong, graph))
    assert np.abs(logits - as_written).max() <= MAX_DIFFERENCE
    assert np.abs(logits - as_trained).max() > 100 * MAX_DIFFERENCE


@pytest.mark.parametrize("policy", [policy for policy in TARGET.policies if policy.name != "F32"], ids=lambda p: p.name)
def test_every_quant_runs(make_graph: Any, write_quant: Any, policy: Policy) -> None:
    graph = make_graph(SMALL)
    artifact = write_quant(graph, policy.name)
    with closing(TARGET.run(artifact, threads=1)) as runner:
        logits = runner.logits(PROMPT)
    decoded = np.asarray(Forward(graph.with_weights(TARGET.read(artifact))).prefill([PROMPT])[0][0])
    assert np.corrcoef(logits.ravel(), decoded.ravel())[0, 1] > 0.98


def test_texts_start_as_the_tokenizer_has_them(make_graph: Any, write_quant: Any) -> None:
    graph = make_graph(SMALL)
    with closing(TARGET.run(write_quant(graph, "Q8_0"), threads=1)) as runner:
        for text in TEXTS:
            assert runner.tokenize(text) == graph.tokenizer.encode(text)
        assert "wllama" in runner.backend


def test_a_wheel_that_does_not_know_it_says_so(
    make_graph: Any, write_quant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its graph lacks is found at loading, in llama.cpp's words."""
    artifact = write_quant(make_graph(SMALL), "Q4_0")
    monkeypatch.setenv("LFM_CONVERT_LLAMA_CPP", "xllamacpp")
    with refused("unknown model architecture: 'lfm3'"):
        TARGET.run(artifact, threads=1)
