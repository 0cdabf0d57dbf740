"""Our files in llama.cpp itself: logits, token ids, and the bytes its own quantizer writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import BackendError, UsageError
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.gguf_file.header import header_bytes, string
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.policy import Policy
from lfm_convert.targets.gguf import runner
from lfm_convert.targets.gguf.metadata import REFINED_KEY
from lfm_convert.targets.gguf.runner import LlamaRunner
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.target import Artifact
from support.checkpoints import dense_25_config, dense_config, moe_config
from support.prompts import PROMPT
from support.refusals import refused

pytestmark = pytest.mark.peers
if TARGET.missing():
    pytest.skip("llama.cpp (xllamacpp) is not installed", allow_module_level=True)

TOLERANCE = 1e-4
# A trained router's chosen scores are small enough for the 1e-6 that transformers adds to their sum to show:
# llama.cpp does not add it.
TRAINED_TOLERANCE = 3e-4
MODELS = {
    "dense": dense_config(),
    "dense, LFM2.5's spelling": dense_25_config(),
    "mixture": moe_config(),
    "scaled experts": moe_config(routed_scaling_factor=2.5),
    "no expert bias": moe_config(use_expert_bias=False),
    "untied dense": dense_config(tie_embedding=False),
    "untied mixture": moe_config(tie_embedding=False),
}
TEXTS = (
    "", " ", "\n", "\t", "Hello world", "  leading", "trailing  ", "a\n\nb", "tab\tx", "\r\n\r\n x", "a b   c    d",
    "12345 67", "3.14e-10", "1,024 hooks", "2026-11-21", "it's", "IT'S", "we'Ll DON'T", "l'été", "'s", "''''''",
    "------=====", "......!!!!!!", "f(x) = x**2", "def count(crates):\n    return 0\n", "{\"a\": [1, 2]}", "C:\\path\\to",
    "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|><|im_end|>", "text<|endoftext|>text", "<|startoftext|>",
    "<|tool_call_start|>[f(a='b')]<|tool_call_end|>", "<|not_a_token|>", "<think>", "[PAD511]",
    "🚀 (normal) 😶‍🌫️ (joined) ✅", "🇩🇪🇫🇷", "我想在apple工作1314151天～", "港は町より先に目を覚ます。", "안녕하세요",
    "نهاية", "१२३", "١٢٣٤", "Đặt hàng", "нещо на Български", "កាន់តែពិសេស", "e\u0301", "ﬁ", "\u00a0nbsp", "\u3000全角",
    "x\u200by", "\u2028", "ſ'ſ", "A" * 300, " " * 40,
)  # fmt: skip


# Fragments side by side, so that cuts between scripts, spaces and special tokens are seen too.
_RNG = np.random.default_rng(500)
CORPUS = (*TEXTS, *("".join(_RNG.choice(TEXTS, _RNG.integers(2, 5))) for _ in range(500 - len(TEXTS))))


@contextmanager
def running(artifact: Artifact, threads: int = 2) -> Iterator[LlamaRunner]:
    loaded = TARGET.run(artifact, threads=threads)
    assert isinstance(loaded, LlamaRunner)
    try:
        yield loaded
    finally:
        loaded.close()


def reference(graph: WeightGraph, ids: list[int]) -> np.ndarray:
    return Forward(graph).prefill([ids])[0][0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_graphs(make_graph: Any, write_quant: Any, name: str) -> None:
    graph = make_graph(MODELS[name])
    expected = reference(graph, PROMPT)
    with running(write_quant(graph, "F32")) as llama:
        assert np.abs(llama.logits(PROMPT) - expected).max() <= TOLERANCE
        llama.reset()
        pieces = [llama.extend(PROMPT[:10]), *(llama.extend([token]) for token in PROMPT[10:])]
        assert np.abs(np.concatenate(pieces) - expected).max() <= TOLERANCE


def test_a_wrong_weight_shows(moe_graph: WeightGraph, write_quant: Any) -> None:
    """Negative control: gate and up projections of one layer's experts swapped."""
    layer = moe_graph.layers[2]
    gate, up = Role.EXPERT_GATE, Role.EXPERT_UP
    swapped = {gate: Weight(gate, 2, layer[up]), up: Weight(up, 2, layer[gate])}
    wrong = replace(layer, weights={**layer.weights, **swapped})
    layers = tuple(wrong if index == 2 else kept for index, kept in enumerate(moe_graph.layers))
    with running(write_quant(replace(moe_graph, layers=layers), "F32")) as llama:
        assert np.abs(llama.logits(PROMPT) - reference(moe_graph, PROMPT)).max() > 100 * TOLERANCE


@pytest.mark.parametrize("policy", [policy for policy in TARGET.policies if policy.name != "F32"], ids=lambda p: p.name)
def test_every_quant_runs(make_graph: Any, write_quant: Any, policy: Policy) -> None:
    graph = make_graph(moe_config(hidden_size=256, moe_intermediate_size=256))
    with running(write_quant(graph, policy.name)) as llama:
        logits = llama.logits(PROMPT)
    assert np.isfinite(logits).all()
    agreement = np.corrcoef(logits.ravel(), reference(graph, PROMPT).ravel())[0, 1]
    assert agreement > {"q3": 0.5, "q4": 0.8, "q5": 0.9}.get(policy.class_name, 0.95)


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_1", "Q4_K_M", "Q2_K", "IQ4_XS", "MXFP4_MOE"])
def test_refined_files_run_as_what_they_decode_to(make_graph: Any, write_quant: Any, quant: str) -> None:
    """llama.cpp rounds activations to the type of the weights, so that it is near the decoded weights, and nearer to
    them than to the checkpoint's."""
    graph = make_graph(moe_config(hidden_size=256, moe_intermediate_size=256, num_experts=5))
    artifact = write_quant(graph, quant, refine=True)
    assert read_gguf(artifact.path).metadata[REFINED_KEY] is True
    decoded = reference(graph.with_weights(TARGET.read(artifact)), PROMPT)
    with running(artifact) as llama:
        logits = llama.logits(PROMPT)
    assert np.corrcoef(logits.ravel(), decoded.ravel())[0, 1] > 0.99
    assert np.square(logits - decoded).mean() < np.square(logits - reference(graph, PROMPT)).mean() / 2


def test_a_split_file_runs(dense_graph: WeightGraph, write_quant: Any) -> None:
    with running(write_quant(dense_graph, "F32", split_max_size=300_000)) as llama:
        assert np.abs(llama.logits(PROMPT) - reference(dense_graph, PROMPT)).max() <= TOLERANCE


def test_a_long_conversation_is_carried_over(dense_graph: WeightGraph, write_quant: Any) -> None:
    """Longer than a batch, and then longer than the first context: replayed in a larger one."""
    ids = np.random.default_rng(1).integers(14, 512, 1100).tolist()
    expected = reference(dense_graph, ids)
    with running(write_quant(dense_graph, "F32")) as llama:
        logits = np.concatenate([llama.extend(ids[:1000]), llama.extend(ids[1000:])])
    assert np.abs(logits - expected).max() <= TOLERANCE


def test_token_ids_are_the_tokenizers(dense_graph: WeightGraph, write_quant: Any) -> None:
    assert dense_graph.tokenizer is not None
    with running(write_quant(dense_graph, "Q8_0")) as llama:
        for text in CORPUS:
            assert llama.tokenize(text) == dense_graph.tokenizer.encode(text), repr(text)


@pytest.mark.parametrize("name", [name for name in bundled.NAMES if name != "lfm3"])  # younger than the wheel
def test_bundled_models(write_quant: Any, name: str) -> None:
    graph = open_graph(bundled.path(name))
    assert graph.tokenizer is not None
    ids = graph.tokenizer.encode("The harbour wakes before the town does. " * 8)
    with running(write_quant(graph, "F32")) as llama:
        assert np.abs(llama.logits(ids) - reference(graph, ids)).max() <= TRAINED_TOLERANCE
        assert all(llama.tokenize(text) == graph.tokenizer.encode(text) for text in CORPUS)


def test_without_a_vocabulary_ids_still_run(make_graph: Any, write_quant: Any) -> None:
    graph = make_graph(dense_config(), tokenizer=False)
    with running(write_quant(graph, "F32")) as llama:
        assert np.abs(llama.logits(PROMPT) - reference(graph, PROMPT)).max() <= TOLERANCE


def test_ids_outside_the_vocabulary_are_refused(dense_graph: WeightGraph, write_quant: Any) -> None:
    with running(write_quant(dense_graph, "F32")) as llama:
        for ids in ([], [-1], [512]):
            with refused("0 … 511", error=UsageError):
                llama.extend(ids)
        assert llama.backend == f"llama.cpp (xllamacpp {runner.PINNED_VERSION}) CPU, 2 threads"


def test_a_damaged_file_is_refused(dense_graph: WeightGraph, write_quant: Any) -> None:
    artifact = write_quant(dense_graph, "Q4_0")
    artifact.path.write_bytes(artifact.path.read_bytes()[:-1])
    with refused(artifact.path, "truncated"):
        TARGET.run(artifact, threads=1)


def test_a_file_without_weights_is_refused_with_llamas_reason(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(header_bytes([string("general.architecture", "lfm2")], []))
    with refused(path, "lfm2.context_length"):
        LlamaRunner(path, threads=1)


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "installed_version", lambda: "2020.1.1")
    with refused(runner.PINNED_VERSION, "found 2020.1.1", "pip install", error=BackendError):
        runner.load_library.__wrapped__()


def test_a_missing_system_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(runner.ctypes, "CDLL", fail)
    with refused("libgomp.so.1", "package manager", error=BackendError):
        runner.load_library.__wrapped__()
