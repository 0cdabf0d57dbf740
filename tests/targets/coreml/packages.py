"""What the tests of packages share: writing one, reading a conversation in pieces, comparing it with the graph's forward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import Layer, WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.target import Artifact, Runner, Target, get_target
from support.artifacts import write_artifact

# Of scores that experts are ranked by: what halves of activations move them by, and some.
_NEAR_TIE = 3e-4


@dataclass(frozen=True)
class Made:
    """A package of a graph, and the target as it wrote it."""

    graph: WeightGraph
    target: Target
    artifact: Artifact

    @property
    def package(self) -> Path:
        return self.artifact.path.parent

    def decoded(self) -> WeightGraph:
        """The graph with the weights that the package stores."""
        return self.graph.with_weights(self.target.read(self.artifact))

    def run(self) -> Runner:
        return self.target.run(self.artifact, threads=1)


def make(graph: WeightGraph, quant: str, folder: Path, **options: Any) -> Made:
    target = get_target("coreml").with_options(options)
    artifact = write_artifact(graph, target, quant, folder)
    return Made(graph, target, replace(artifact, entry={"options": target.options}))


def in_pieces(runner: Runner, tokens: Sequence[int], sizes: Sequence[int]) -> Float32:
    """Logits of a conversation from its start, read in pieces of these sizes."""
    assert sum(sizes) == len(tokens)
    runner.reset()
    bounds = itertools.pairwise([0, *itertools.accumulate(sizes)])
    return np.concatenate([runner.extend(tokens[low:high]) for low, high in bounds])


class _Margins(Forward):
    """Keeps by how much the last chosen expert leads the next best, at each position the least of all layers."""

    margin: np.ndarray

    def biased(self, layer: Layer, scores: Float32) -> Float32:
        ranked = super().biased(layer, scores)
        top_k = layer.feed_forward.top_k  # type: ignore[union-attr]
        if top_k < ranked.shape[1]:
            ordered = np.sort(ranked, axis=1)[:, ::-1]
            self.margin = np.minimum(self.margin, ordered[:, top_k - 1] - ordered[:, top_k])
        return ranked


def solid(graph: WeightGraph, tokens: Sequence[int]) -> int:
    """Positions before the first at which rounding could send a token to another expert: sound runtimes differ from there."""
    forward = _Margins(graph)
    forward.margin = np.full(len(tokens), np.inf, np.float32)
    forward.prefill([list(tokens)])
    near = np.flatnonzero(forward.margin < _NEAR_TIE)
    return int(near[0]) if near.size else len(tokens)


def prompt(graph: WeightGraph, count: int) -> tuple[list[int], int]:
    """Tokens, and how many of them are solid: of a few prompts the one that is so longest."""
    vocab = min(1000, graph.config.vocab_size)
    tried = []
    for seed in range(12 if graph.config.is_mixture else 1):
        tokens = [1, *np.random.default_rng(seed).integers(14, vocab, count - 1).tolist()]
        tried.append((solid(graph, tokens), tokens))
    n, tokens = max(tried)
    return tokens, n


def check(made: Made, pieces: Sequence[int], runner: Runner | None = None) -> None:
    """A conversation in pieces is what the graph's forward makes of it with the package's weights."""
    graph = made.decoded()
    tokens, n = prompt(graph, sum(pieces))
    expected = Forward(graph).prefill([tokens])[0][0]
    assert n >= 8
    assert_same(expected[:n], in_pieces(runner or made.run(), tokens, pieces)[:n])


def kld(expected: Float32, found: Float32) -> Float32:
    """Nats of each position."""
    first, second = (_log_softmax(each.astype(np.float64)) for each in (expected, found))
    return (np.exp(first) * (first - second)).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def assert_same(expected: Float32, found: Float32, *, logits: float = 0.05, nats: float = 1e-4) -> None:
    """As near as the issue asks of fp16; the token of every position, but for leads that the difference can turn over."""
    difference = float(np.abs(expected - found).max())
    assert difference <= logits, difference
    assert kld(expected, found).max() <= nats, kld(expected, found).max()
    top = np.sort(expected, axis=-1)
    is_clear = top[:, -1] - top[:, -2] > 2 * difference
    assert (expected.argmax(-1) == found.argmax(-1))[is_clear].all()
    assert is_clear.mean() > 0.5
