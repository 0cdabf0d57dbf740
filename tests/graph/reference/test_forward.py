"""The forward pass against itself: however a prompt is cut, batched or streamed, its logits are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference import attention, weights
from lfm_convert.graph.reference.cores import cut, each
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.graph.roles import Role
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT
from support.refusals import refused
from threadpoolctl import threadpool_limits

# Sums of matrix products change order with the number of rows; nothing else may differ.
ROUNDING = 5e-5

KINDS = {
    "dense": dense_config(),
    "dense-wide-window": dense_config(conv_L_cache=4, conv_bias=True),
    "dense-narrow-window": dense_config(conv_L_cache=2, num_key_value_heads=1),
    "moe": moe_config(),
}


@pytest.fixture(scope="module", params=KINDS)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    return open_graph(make_checkpoint(tmp_path_factory.mktemp(request.param), KINDS[request.param]))


@pytest.fixture(scope="module")
def whole(graph: WeightGraph) -> np.ndarray:
    """Logits of PROMPT in one go."""
    return full(graph, PROMPT)


def full(graph: WeightGraph, prompt: list[int]) -> np.ndarray:
    return Forward(graph).prefill([prompt])[0][0]


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and float(np.abs(a - b).max()) <= ROUNDING


def test_decode_with_cache_equals_the_whole(graph: WeightGraph, whole: np.ndarray) -> None:
    model, state = Forward(graph), State(1)
    steps = [model.extend(state, [[token]])[0] for token in PROMPT]
    assert close(np.concatenate(steps), whole)
    assert state.sequences[0].length == len(PROMPT)


@pytest.mark.parametrize("sizes", [[1], [2], [3], [4], [7], [1, 2, 3, 4, 5], [20, 1]], ids=str)
def test_prefill_in_chunks_equals_the_whole(graph: WeightGraph, whole: np.ndarray, sizes: list[int]) -> None:
    model, state, chunks, low = Forward(graph), State(1), [], 0
    while low < len(PROMPT):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(model.extend(state, [PROMPT[low : low + size]])[0])
        low += size
    assert close(np.concatenate(chunks), whole)


def test_ragged_prompts_in_a_batch_equal_each_alone(graph: WeightGraph) -> None:
    prompts = [PROMPT, PROMPT[5:6], PROMPT[3:], PROMPT[:2]]
    model = Forward(graph)
    logits, state = model.prefill(prompts)
    more = model.extend(state, [PROMPT[:3], PROMPT[4:5], PROMPT[:1], PROMPT[8:]])
    for prompt, first, tail, second in zip(
        prompts, logits, [PROMPT[:3], PROMPT[4:5], PROMPT[:1], PROMPT[8:]], more, strict=True
    ):
        assert close(np.concatenate([first, second]), full(graph, prompt + tail))


def test_later_tokens_do_not_change_earlier_logits(graph: WeightGraph, whole: np.ndarray) -> None:
    assert close(whole[:10], full(graph, PROMPT[:10]))
    assert not close(whole[10:11], full(graph, [*PROMPT[:10], 99])[10:])


@pytest.mark.parametrize("keep_bytes", [0, 100_000])
def test_streaming_gives_the_same_bits(graph: WeightGraph, whole: np.ndarray, keep_bytes: int) -> None:
    streamed = Forward(graph, keep_bytes=keep_bytes)
    for _ in range(2):
        assert streamed.prefill([PROMPT])[0][0].tobytes() == whole.tobytes()
    assert sum(kept.nbytes for kept in streamed._kept.values()) <= keep_bytes


def test_blocks_of_the_head_and_of_the_scores_do_not_change_logits(
    graph: WeightGraph, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PIECE_ROWS", 50)
    monkeypatch.setattr(weights, "_PIECE_ELEMENTS", 50 * 128)
    monkeypatch.setattr(attention, "_SCORE_ELEMENTS", 300)
    assert close(full(graph, PROMPT), whole)


def test_generate_is_greedy_and_stops(graph: WeightGraph) -> None:
    model = Forward(graph)
    tokens = model.generate(PROMPT, max_new_tokens=6)
    for i, token in enumerate(tokens):
        assert token == full(graph, PROMPT + tokens[:i])[-1].argmax()
    stop = tokens[2]
    assert model.generate(PROMPT, max_new_tokens=6, stop=[stop]) == tokens[: tokens.index(stop) + 1]


@pytest.mark.parametrize(
    ("tokens", "part"),
    [([[1, 512]], "token id 512"), ([[1, -1]], "token id -1"), ([[]], "zero tokens"), ([[1], [2]], "2 token lists")],
)
def test_tokens_it_cannot_run_are_refused(tokens: list[list[int]], part: str, dense_graph: WeightGraph) -> None:
    with refused(part, error=UsageError):
        Forward(dense_graph).extend(State(1), tokens)


def test_routing_is_by_biased_and_weighted_by_plain_scores(moe_graph: WeightGraph) -> None:
    model = Forward(moe_graph)
    layer = moe_graph.layers[1]
    x = np.random.default_rng(3).standard_normal((50, 128), np.float32)
    scores = 1 / (1 + np.exp(-x @ layer[Role.ROUTER].read().T))
    bias = layer[Role.EXPERT_BIAS].read()
    block = moe_graph.config.mixture
    assert block is not None
    routing = model.route(block, layer, x)
    for token in range(50):
        chosen = set(np.argsort(scores[token] + bias)[-4:])
        assert set(routing.experts[token]) == chosen
        plain = scores[token, routing.experts[token]]
        assert np.allclose(routing.weights[token], plain / (plain.sum() + 1e-6), rtol=1e-5)
    unbiased = np.sort(np.argsort(scores, axis=1)[:, -4:], axis=1)
    assert (np.sort(routing.experts, axis=1) != unbiased).any(), "the bias of this checkpoint changes nothing"


def test_memory_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    """A model run with keep_bytes=0 grows the process by far less than its float32 weights (160 MB)."""
    psutil = pytest.importorskip("psutil")
    folder = make_checkpoint(tmp_path, moe_config(hidden_size=512, num_experts=32, moe_intermediate_size=256))
    model = Forward(open_graph(folder), keep_bytes=0)
    before = psutil.Process().memory_info().rss
    model.prefill([PROMPT])
    grown = psutil.Process().memory_info().rss - before
    assert grown < 0.25 * 4 * model.graph.n_parameters


def test_threads_do_not_change_a_bit(graph: WeightGraph) -> None:
    prompts = [PROMPT * 8, PROMPT]  # products of several pieces
    found = []
    for n_threads in (1, 4):
        with threadpool_limits(n_threads, user_api="blas"):
            logits, _ = Forward(graph).prefill(prompts)
            found.append([values.tobytes() for values in logits])
    assert found[0] == found[1]


def test_a_failure_in_any_piece_is_raised() -> None:
    def fail(low: int, high: int) -> None:
        if low == 30:
            raise ValueError(f"piece {low}")

    for n_threads in (1, 4):
        with threadpool_limits(n_threads, user_api="blas"), pytest.raises(ValueError, match="piece 30"):
            each(fail, cut(100, 10))
