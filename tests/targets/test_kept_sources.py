"""Folders of fused matrices, and of gains less one, as sources: the weights that were stored, and the same bytes again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.target import Artifact, get_target, open_artifact
from support.artifacts import write_artifact
from support.drawn_graphs import drawn

CASES = [
    ("mlx", "Phi-4-mini", "4bit-g32"),
    ("mlx", "gemma-3-270m", "8bit-g32"),
    ("mlx", "Granite-4.0-1B", "bf16"),
    ("mlx", "Granite-4.0-1B", "4bit-g32"),
    ("mlx", "Qwen3-30B-A3B", "mxfp4"),
    ("mlx", "Granite-3.1-1B-A400M", "4bit-g32"),
    ("compressed-tensors", "Phi-4-mini", "W4A16-g32"),
    ("compressed-tensors", "Phi-4-mini", "FP8"),
    ("compressed-tensors", "gemma-3-270m", "W8A8"),
    ("compressed-tensors", "Granite-4.0-1B", "W4A16-g32-asym"),
    ("compressed-tensors", "Qwen3-30B-A3B", "NVFP4A16"),
]


def opened(artifact: Artifact) -> WeightGraph:
    folder = artifact.path.parent
    found = open_artifact(folder) if artifact.target == "mlx" else open_graph(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(("target", "name", "quant"), CASES)
def test_a_folder_is_a_source(target: str, name: str, quant: str, tmp_path: Path) -> None:
    graph = drawn(tmp_path / name, name)
    artifact = write_artifact(graph, target, quant, tmp_path / "first")
    source, stored = opened(artifact), get_target(target).read(artifact)
    assert [w.address for w in source.weights()] == [w.address for w in graph.weights()]
    for weight in source.weights():
        values = weight.view.read()
        np.testing.assert_array_equal(values, stored[weight.address].read())
        error, size = np.abs(values - graph_weight(graph, weight.address)).mean(), np.abs(values).mean()
        assert error < 0.2 * size, weight.view.name
    again = write_artifact(source, target, quant, tmp_path / "again")
    if target == "mlx":  # whose codes pass
        files = [each.path.with_name("model.safetensors").read_bytes() for each in (artifact, again)]
        assert files[0] == files[1]


def graph_weight(graph: WeightGraph, address: object) -> np.ndarray:
    return next(weight.view.read() for weight in graph.weights() if weight.address == address)
