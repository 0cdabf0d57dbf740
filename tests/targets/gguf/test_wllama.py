"""The second way of running llama.cpp, as WebAssembly: it agrees with the wheel, refuses in sentences and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.gguf_file.header import header_bytes, string
from lfm_convert.targets.gguf import conversation, runtimes
from lfm_convert.targets.gguf.runner import LlamaRunner
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.gguf.wllama import install
from lfm_convert.targets.gguf.wllama.runner import WllamaRunner
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.probes import check_cache
from support.checkpoints import dense_config, moe_config
from support.prompts import PROMPT
from support.refusals import refused

pytestmark = pytest.mark.peers
if TARGET.missing():
    pytest.skip("llama.cpp (xllamacpp) is not installed", allow_module_level=True)
if install.missing():
    pytest.skip("wllama is not installed: make wllama", allow_module_level=True)

TOLERANCE = 1e-3
N_GREEDY = 20
TEXTS = (
    "",
    " ",
    "Hello world\n",
    "12345 67",
    "l'été",
    "<|im_start|>user\nHi<|im_end|>\n",
    "我想在apple工作",
    "😶‍🌫️ 🇩🇪",
    "\0",
)
# Its death does not close the engine's input: another process holds that open too.
PARENT = """
import subprocess, sys
from pathlib import Path
from lfm_convert.targets.gguf.wllama.runner import WllamaRunner
engine = WllamaRunner([Path(sys.argv[1])], threads=1)._engine
keeper = subprocess.Popen(["sleep", "60"], pass_fds=[engine._process.stdin.fileno()])
print(engine.process_id, keeper.pid, flush=True)
keeper.wait()
"""


def running(artifact: Artifact, threads: int = 1) -> closing[WllamaRunner]:
    return closing(WllamaRunner(artifact.files, threads=threads))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def greedy(runner: LlamaRunner | WllamaRunner) -> tuple[list[int], np.ndarray]:
    """A continuation, and the log-probabilities [n, V] of the prompt's tokens and of each further one."""
    rows = [runner.logits(PROMPT)]
    ids: list[int] = []
    for _ in range(N_GREEDY):
        ids.append(int(rows[-1][-1].argmax()))
        rows.append(runner.extend(ids[-1:]))
    return ids, log_softmax(np.concatenate(rows))


def has_ended(process_id: int, *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("config", [dense_config(), moe_config()], ids=["dense", "mixture"])
def test_it_says_what_the_wheel_says(make_graph: Any, write_quant: Any, config: dict[str, Any]) -> None:
    artifact = write_quant(make_graph(config), "F32")
    with running(artifact) as ours, closing(LlamaRunner(artifact.path, threads=1)) as wheel:
        (ids, found), (expected_ids, expected) = greedy(ours), greedy(wheel)
        assert (ours.stops(), ours.templates()) == (wheel.stops(), wheel.templates())
        assert [ours.tokenize(text) for text in TEXTS] == [wheel.tokenize(text) for text in TEXTS]
    assert ids == expected_ids
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "MXFP4_MOE"])
def test_quantised_files_run_as_what_they_decode_to(make_graph: Any, write_quant: Any, quant: str) -> None:
    """No exact comparison: either runtime rounds activations, and each in its own way."""
    graph = make_graph(moe_config(hidden_size=256, moe_intermediate_size=256))
    artifact = write_quant(graph, quant)
    decoded = write_quant(graph.with_weights(TARGET.read(artifact)), "F32")
    with running(artifact) as ours, closing(LlamaRunner(decoded.path, threads=1)) as wheel:
        logits, expected = ours.logits(PROMPT), wheel.logits(PROMPT)
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99


def test_every_way_of_reading_a_prompt_gives_the_same(dense_graph: WeightGraph, write_quant: Any) -> None:
    prompts = tuple(range(20, 50)), tuple(range(100, 121))
    with running(write_quant(dense_graph, "F32")) as ours:
        found = check_cache(ours, prompts, [ours.logits(ids) for ids in prompts])
    assert found is not None and found.not_seen == ()
    assert [probe.name for probe in found.probes] == ["stepwise", "chunked", "interleaved", "reset", "batch_together"]
    assert all(probe.max_abs < 1e-4 for probe in found.probes)


def test_threads_and_splits_change_nothing_and_a_conversation_may_grow(
    dense_graph: WeightGraph, write_quant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "_FIRST_CONTEXT", 256)
    ids = np.random.default_rng(1).integers(14, 512, 300).tolist()
    with running(write_quant(dense_graph, "F32")) as ours:
        whole = ours.logits(ids)
    with running(write_quant(dense_graph, "F32", split_max_size=300_000), threads=2) as ours:
        grown = np.concatenate([ours.extend(ids[:250]), ours.extend(ids[250:])])
        assert "2 threads" in ours.backend
    assert np.abs(whole - grown).max() <= 1e-4


def test_bundled_model(write_quant: Any) -> None:
    graph = open_graph(bundled.path("dense"))
    assert graph.tokenizer is not None
    text = "The harbour wakes before the town does. 😶‍🌫️ " * 8
    artifact = write_quant(graph, "F32")
    with running(artifact) as ours, closing(LlamaRunner(artifact.path, threads=1)) as wheel:
        ids = ours.tokenize(text)
        assert ids == graph.tokenizer.encode(text)
        assert np.abs(log_softmax(ours.logits(ids)) - log_softmax(wheel.logits(ids))).max() <= TOLERANCE


def test_without_a_vocabulary_ids_still_run(make_graph: Any, write_quant: Any) -> None:
    artifact = write_quant(make_graph(dense_config(), tokenizer=False), "F32")
    with running(artifact) as ours, closing(LlamaRunner(artifact.path, threads=1)) as wheel:
        assert np.abs(ours.logits(PROMPT) - wheel.logits(PROMPT)).max() <= TOLERANCE
        assert ours.stops() == {}
        with refused("0 … 511", error=UsageError):
            ours.extend([512])


def test_it_can_be_chosen_for_any_file(
    dense_graph: WeightGraph, write_quant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_quant(dense_graph, "Q8_0")
    monkeypatch.setenv(runtimes.CHOICE_VARIABLE, "wllama")
    with closing(TARGET.run(artifact, threads=1)) as runner:
        assert runner.backend == "llama.cpp b12211 (wllama 3.13.0, WebAssembly) CPU, 1 threads"


def test_damaged_files_are_refused_with_llamas_reason(
    tmp_path: Path, dense_graph: WeightGraph, write_quant: Any
) -> None:
    children = len(psutil.Process().children())
    path = tmp_path / "empty.gguf"
    path.write_bytes(header_bytes([string("general.architecture", "lfm2")], []))
    with refused(path, "fails to load it", "lfm2.context_length"):
        WllamaRunner([path], threads=1)
    artifact = write_quant(dense_graph, "Q8_0", split_max_size=300_000)
    with refused(artifact.path, "fails to load it"):
        WllamaRunner(artifact.files[:1], threads=1)
    assert len(psutil.Process().children()) == children


def test_a_truncated_file_is_refused(
    dense_graph: WeightGraph, write_quant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_quant(dense_graph, "Q8_0")
    artifact.path.write_bytes(artifact.path.read_bytes()[:-1])
    monkeypatch.setenv(runtimes.CHOICE_VARIABLE, "wllama")
    with refused(artifact.path, "truncated"):
        TARGET.run(artifact, threads=1)


def test_its_process_ends_with_it_and_its_death_is_a_sentence(dense_graph: WeightGraph, write_quant: Any) -> None:
    artifact = write_quant(dense_graph, "Q8_0")
    with pytest.raises(RuntimeError), running(artifact) as ours:
        process_id = ours._engine.process_id
        raise RuntimeError
    assert has_ended(process_id)
    with running(artifact) as ours:
        os.kill(ours._engine.process_id, signal.SIGKILL)
        with refused(artifact.path, "exit code -9"):
            ours.logits(PROMPT)


def test_its_process_ends_with_a_parent_that_is_killed(dense_graph: WeightGraph, write_quant: Any) -> None:
    artifact = write_quant(dense_graph, "F32")
    command = [sys.executable, "-c", PARENT, str(artifact.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process_id, keeper = map(int, parent.stdout.readline().split())
        parent.kill()
    try:
        assert has_ended(process_id)
    finally:
        os.kill(keeper, signal.SIGKILL)
