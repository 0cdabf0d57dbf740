"""Small models of the families whose weights are drawn, without any library that makes checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.tensor import ArrayTensor

from .fitting_models import fitting


def declared(folder: Path, config: dict[str, Any]) -> WeightGraph:
    """The graph of a config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return open_graph(folder, weights=False)


def drawn(folder: Path, name: str, **fields: Any) -> WeightGraph:
    """With weights in memory."""
    graph, rng = declared(folder, fitting(name, **fields)), np.random.default_rng(3)
    return graph.with_weights(
        {w.address: ArrayTensor(w.view.name, rng.standard_normal(w.shape).astype(np.float32)) for w in graph.weights()}
    )
