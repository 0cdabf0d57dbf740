"""What statistics are for: they say beforehand what rounding a matrix will cost, which importance alone does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.calibration import chunks_of, sources_of
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.quantize.statistics.gather import gather
from lfm_convert.quantize.statistics.layout import measured_weights

pytestmark = pytest.mark.slow


def log_probabilities(graph: WeightGraph, chunks: list) -> np.ndarray:
    forward = Forward(graph)
    logits = forward.head(np.concatenate(forward.states(State(len(chunks)), chunks))).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def test_estimates_rank_what_rounding_costs(tmp_path: Path) -> None:
    """Each matrix of the bundled dense model at four bits, by itself: estimated, and measured on other chunks."""
    graph, encoding = pipeline.open_model("bundled:dense"), get_encoding("Q4_0")
    chunks = list(chunks_of(graph, sources_of([], with_default=False)[0], 512, pytest.fail))
    run, scored = gather(graph, chunks[::4], seed=0, scratch=tmp_path), chunks[1::16]
    n_tokens, before = sum(map(len, chunks[::4])), log_probabilities(graph, scored)
    estimates, weighted, measured = [], [], []
    for address, shape in measured_weights(graph).items():
        if address[1] is None:
            continue
        weight = graph.layers[address[1]].weights[address[0]]
        values = weight.view.read()
        rounded = encoding.decode(*encoding.encode(values, None)).reshape(shape)
        errors = np.square(rounded - values, dtype=np.float64).reshape(-1, *shape[-2:])
        columns, gradients = run.mean_squares(address), run.squared_gradients(address)
        estimates.append(float(0.5 * np.einsum("src,sr,sc->", errors, gradients, columns) / n_tokens))
        weighted.append(float(np.einsum("src,sc->", errors, columns)))
        after = log_probabilities(graph.with_weights({address: ArrayTensor("rounded", rounded)}), scored)
        measured.append(float((np.exp(before) * (before - after)).sum(axis=1).mean()))
    assert np.corrcoef(ranks(estimates), ranks(measured))[0, 1] > 0.9
    assert np.corrcoef(ranks(weighted), ranks(measured))[0, 1] < 0.6, "importance alone says little"
    assert 0.6 < np.median(np.array(estimates) / np.array(measured)) < 1.4, "in nats a token, not only in order"
