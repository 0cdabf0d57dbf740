"""Models that give vectors as ONNX: a graph without caches, against the reference and torch, alone and in padded batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.targets.onnx.target import TARGET
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import target_names
from support.encoders import KINDS, make_encoder, torch_states

ort = pytest.importorskip("onnxruntime")

MAX_DIFFERENCE = 1e-4
_DRAWN = np.random.default_rng(11)
PROMPTS = [[1, *_DRAWN.integers(14, 512, n - 1).tolist()] for n in (1, 2, 40, 150)]
VECTOR_FILES = {"modules.json", "config_sentence_transformers.json"}


@pytest.fixture(params=KINDS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> WeightGraph:
    return open_graph(make_encoder(tmp_path / "model", request.param))


def session(graph: WeightGraph, quant: str, folder: Path) -> ort.InferenceSession:
    plan = TARGET.plan(graph, quant)
    TARGET.write(plan, graph, folder, Execution())
    return ort.InferenceSession(str(folder / plan.main_file), providers=["CPUExecutionProvider"])


def given(prompts: list[list[int]], *, left: bool = False) -> dict[str, np.ndarray]:
    """Ids and mask of a batch; what is padded is no token, whatever its id."""
    n = max(map(len, prompts))
    ids, mask = np.full((len(prompts), n), 9, np.int64), np.zeros((len(prompts), n), np.int64)
    for row, prompt in enumerate(prompts):
        at = slice(n - len(prompt), n) if left else slice(0, len(prompt))
        ids[row, at], mask[row, at] = prompt, 1
    return {"input_ids": ids, "attention_mask": mask}


def test_vectors_are_the_references(graph: WeightGraph, tmp_path: Path) -> None:
    run = session(graph, "fp32", tmp_path)
    forward, head = Forward(graph), graph.config.vectors
    assert head is not None
    name = "token_embeddings" if head.is_per_token else "sentence_embedding"
    assert [output.name for output in run.get_outputs()] == ["last_hidden_state", name]
    for prompt, states in zip(PROMPTS, forward.states(State(len(PROMPTS)), PROMPTS), strict=True):
        hidden, vectors = run.run(None, given([prompt]))
        assert np.abs(hidden[0] - states).max() <= MAX_DIFFERENCE
        assert np.abs(vectors.reshape(-1, vectors.shape[-1]) - forward.vectors(states)).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_vector_of_a_whole_text(left: bool, tmp_path: Path) -> None:
    graph = open_graph(make_encoder(tmp_path / "model"))
    run, forward = session(graph, "fp32", tmp_path), Forward(graph)
    (_, vectors) = run.run(None, given(PROMPTS, left=left))
    expected = [forward.vectors(states)[0] for states in forward.states(State(len(PROMPTS)), PROMPTS)]
    assert np.abs(vectors - np.stack(expected)).max() <= MAX_DIFFERENCE


def test_tokens_that_the_mask_leaves_out_have_vectors_of_their_own(tmp_path: Path) -> None:
    """Late interaction adds tokens to a query: no token attends to them, and convolutions see them."""
    graph = open_graph(make_encoder(tmp_path / "model", "colbert", num_hidden_layers=2, attention=(0, 1)))
    run = session(graph, "fp32", tmp_path)
    feeds = given([PROMPTS[2]])
    feeds["attention_mask"][:, -8:] = 0
    hidden, vectors = run.run(None, feeds)
    alone = torch_states(graph.folder, [PROMPTS[2][:-8]])[0]
    assert np.abs(hidden[0, :-8] - alone).max() <= MAX_DIFFERENCE
    assert np.abs(vectors[0, -8:]).max(axis=1).min() > 0.1


def test_other_targets_refuse_by_name(tmp_path: Path) -> None:
    graph = open_graph(make_encoder(tmp_path / "model", "causal colbert"))
    for name in set(target_names()) - {"gguf", "onnx"}:
        with pytest.raises(UsageError, match=f"{name} has no head that gives vectors: choose another target"):
            pipeline.plan(graph, target=name)
