"""Writes what was gathered, all but the moments, which are written as they are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.graph import WeightGraph
from ...graph.roles import Address
from ..calibration import Use
from ..gguf_file.tensor_names import tensor_name
from ..imatrix import IMATRIX_FILE, importance_bytes
from ..together import Chunks
from .collector import Collector
from .inputs import input_of
from .layout import (
    COLUMNS_FILE,
    GRADIENTS_FILE,
    IDS,
    LENGTHS,
    LOOKUPS,
    TOKENS_FILE,
    measured_weights,
    write_arrays,
)


def write_gathered(
    run: Collector, chunks: Chunks, folder: Path, *, datasets: tuple[str, ...], chunk_size: int
) -> dict[str, Any]:
    """Writes tokens, importance, columns and gradients; returns what statistics.json has of them."""
    graph = run.graph
    named = {tensor_name(address): address for address in measured_weights(graph)}
    write_arrays(
        folder / TOKENS_FILE,
        {
            IDS: np.concatenate([np.asarray(chunk, np.int32) for chunk in chunks]),
            LENGTHS: np.array([len(chunk) for chunk in chunks], np.int32),
        },
    )
    write_arrays(folder / COLUMNS_FILE, {n: run.mean_squares(a).astype(np.float32) for n, a in named.items()})
    gradients = {n: run.squared_gradients(a).astype(np.float32) for n, a in named.items()}
    if run.lookups is not None:
        gradients[LOOKUPS] = run.lookups[None].astype(np.float32)
    write_arrays(folder / GRADIENTS_FILE, gradients)
    content = importance_bytes(importance(run), datasets=datasets, n_chunks=len(chunks), chunk_size=chunk_size)
    (folder / IMATRIX_FILE).write_bytes(content)
    return {
        "n_tokens": sum(map(len, chunks)),
        "chunk_size": chunk_size,
        "tokens": {name: counted(run, address) for name, address in named.items()},
        "borrowed": borrowed(run),
    }


def importance(run: Collector) -> dict[str, Use]:
    """What llama-imatrix counts, by llama.cpp's names: every matrix of the layers, of the tokens that reached it."""
    family, found = run.graph.config.family, {}
    for weight in run.graph.weights():
        own = input_of(weight.address)
        if weight.layer is not None and own in run.inputs.sums:
            sums, tokens = run.inputs.sums[own], run.inputs.tokens[own]
            found[tensor_name(weight.address, family)] = Use(sums.astype(np.float32), tokens.astype(np.float32))
    return found


def counted(run: Collector, address: Address) -> Sequence[int]:
    """Tokens that reached each slice of a weight."""
    return [int(n) for n in run.inputs.tokens[input_of(address)]]


def borrowed(run: Collector) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """By layer and expert: its own tokens, the borrowed ones, and what these count together."""
    return {
        f"blk.{layer}": {str(which): _about(run, layer, which, loan.shares) for which, loan in loans.items()}
        for layer, loans in run.loans.items()
        if loans
    }


def _about(run: Collector, layer: int, which: int, shares: np.ndarray) -> dict[str, Any]:
    own = counted(run, _stack(run.graph, layer))[which]
    return {"tokens": own, "borrowed": len(shares), "counted_as": round(float(shares.sum(dtype=np.float64)), 3)}


def _stack(graph: WeightGraph, layer: int) -> Address:
    return next(w.address for w in graph.layers[layer].weights.values() if len(w.shape) == 3)
