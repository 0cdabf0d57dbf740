"""The backward pass against differences of the forward one, for what no family of transformers has; and its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.blocks import Attention, Branch
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.backward.run import Backward
from lfm_convert.graph.reference.state import Batch, State
from support.checkpoints import lfm3_config, make_checkpoint

LENGTHS = [20, 3, 11]


def _rope(attention: Attention, **fields: object) -> Attention:
    assert attention.rope is not None
    return replace(attention, rope=replace(attention.rope, **fields))


CHANGES: dict[str, Callable[[Branch], Branch]] = {
    "as it is": lambda branch: branch,
    "scaled branches": lambda branch: replace(branch, scale=0.3),
    "no norm before": lambda branch: replace(branch, norm=None),
    "neighbours turn": lambda branch: _attention(branch, lambda a: _rope(a, pairs_neighbours=True)),
    "scaled rope": lambda branch: _attention(branch, lambda a: _rope(a, factor=1.3)),
    "no rope": lambda branch: _attention(branch, lambda a: replace(a, rope=None)),
    "both ways": lambda branch: _attention(branch, lambda a: replace(a, is_causal=False)),
    "both ways, windowed": lambda branch: _attention(branch, lambda a: replace(a, is_causal=False, window=4)),
}


def _attention(branch: Branch, change: Callable[[Attention], Attention]) -> Branch:
    return replace(branch, block=change(branch.block)) if isinstance(branch.block, Attention) else branch


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    return open_graph(make_checkpoint(tmp_path_factory.mktemp("lfm3"), lfm3_config(), dtype="float32"))


def _batch() -> Batch:
    return Batch(State(len(LENGTHS)), LENGTHS)


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_a_pull_back_is_the_slope_of_its_layer(case: str, keep_bytes: int, graph: WeightGraph) -> None:
    rng, run = np.random.default_rng(2), Backward(graph, keep_bytes=keep_bytes)
    for index in (2, 4):
        layer = replace(graph.layers[index], branches=tuple(map(CHANGES[case], graph.layers[index].branches)))
        x, along, wanted = rng.standard_normal((3, sum(LENGTHS), graph.config.hidden_size), np.float32)
        out, pull = run.turn_layer(layer, x, _batch())
        assert np.array_equal(out, run.run_layer(layer, x, _batch()))
        step = np.float32(1e-2)
        ahead, behind = (run.run_layer(layer, x + sign * step * along, _batch()) for sign in (1, -1))
        slope = float(((ahead - behind).astype(np.float64) * wanted).sum() / (2 * step))
        assert float((pull(wanted).astype(np.float64) * along).sum()) == pytest.approx(slope, rel=2e-3, abs=0.3)


def test_the_loss_falls_against_its_gradient(graph: WeightGraph) -> None:
    graph = replace(graph, config=replace(graph.config, logit_scale=0.25))
    run, rng = Backward(graph), np.random.default_rng(3)
    x, uniform = rng.standard_normal((40, graph.config.hidden_size), np.float32), rng.random(40)
    labels, gradient = run.turn_end(x, uniform)

    def loss(hidden: np.ndarray) -> float:
        logits = run.head(run.finish(hidden)).astype(np.float64)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(40), labels]).sum())

    along = rng.standard_normal(x.shape, np.float32)
    slope = (loss(x + np.float32(1e-2) * along) - loss(x - np.float32(1e-2) * along)) / 2e-2
    assert float((gradient * along).sum()) == pytest.approx(slope, rel=1e-3)


def test_labels_are_drawn_as_often_as_the_model_says(graph: WeightGraph) -> None:
    run, n = Backward(graph), 20_000
    x = np.repeat(np.random.default_rng(4).standard_normal((1, graph.config.hidden_size), np.float32), n, axis=0)
    labels, _ = run.turn_end(x, np.random.default_rng(5).random(n))
    logits = run.head(run.finish(x[:1]))[0].astype(np.float64)
    expected = n * np.exp(logits) / np.exp(logits).sum()
    found = np.bincount(labels, minlength=len(expected))
    often = expected > 5
    chi = float((np.square(found - expected)[often] / expected[often]).sum())
    assert chi < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_labels_do_not_depend_on_the_batch(graph: WeightGraph) -> None:
    run, rng = Backward(graph), np.random.default_rng(6)
    x, uniform = rng.standard_normal((64, graph.config.hidden_size), np.float32), rng.random(64)
    whole, gradient = run.turn_end(x, uniform)
    parts = [run.turn_end(x[low : low + 16], uniform[low : low + 16]) for low in range(0, 64, 16)]
    assert np.array_equal(whole, np.concatenate([labels for labels, _ in parts]))
    assert np.allclose(gradient, np.concatenate([by for _, by in parts]), rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_kept_give_the_same(tmp_path: Path, graph: WeightGraph) -> None:
    x = np.random.default_rng(7).standard_normal((sum(LENGTHS), graph.config.hidden_size), np.float32)
    found = []
    for keep_bytes in (0, 1 << 30):
        _, pull = Backward(graph, keep_bytes=keep_bytes).turn_layer(graph.layers[2], x, _batch())
        found.append(pull(x))
    assert np.allclose(*found, rtol=1e-5, atol=1e-6)
