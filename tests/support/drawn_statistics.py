"""Statistics of no calibration: drawn at random, so that what goes by them needs no forward and no backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Address, Role, Trait
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.imatrix import importance_bytes
from lfm_convert.targets import allotting

_KNOWN = (Trait.TABLE, Trait.HEAD, Trait.MATRIX, Trait.EXPERTS, Trait.ROUTER)


@dataclass
class DrawnStatistics:
    """As `Statistics`. Some weights matter a hundred times as much as others."""

    folder: Path
    n_tokens: int = 1000
    sha256: str = "5" * 64
    known_columns: dict[Address, np.ndarray] = field(default_factory=dict)
    known_gradients: dict[Address, np.ndarray] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        return {"statistics_sha256": self.sha256, "texts": [{"name": "drawn.txt", "sha256": "7" * 64}]}

    @property
    def lookups(self) -> np.ndarray:
        return self.known_gradients[(Role.EMBED, None)] / 2

    def columns(self, address: Address) -> np.ndarray | None:
        return self.known_columns.get(address)

    def gradients(self, address: Address) -> np.ndarray | None:
        return self.known_gradients.get(address)


def draw_statistics(graph: WeightGraph, folder: Path, *, seed: int = 0) -> DrawnStatistics:
    """Statistics of a graph in a folder, which has its importance file."""
    rng, found, uses = np.random.default_rng(seed), DrawnStatistics(folder), {}
    for weight in graph.weights():
        if weight.role.trait not in _KNOWN:
            continue
        n = weight.shape[0] if len(weight.shape) == 3 else 1
        scale = 10 ** rng.uniform(-1, 1)
        columns = rng.gamma(1.0, 1.0, (n, weight.shape[-1])).astype(np.float32)
        found.known_columns[weight.address] = columns
        found.known_gradients[weight.address] = (scale * rng.gamma(1.0, 1.0, (n, weight.shape[-2]))).astype(np.float32)
        if weight.layer is not None:
            uses[tensor_name(weight.address, graph.config.family)] = Use(columns, np.ones(n, np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    content = importance_bytes(uses, datasets=("drawn.txt",), n_chunks=1, chunk_size=512)
    (folder / "imatrix.gguf").write_bytes(content)
    (folder / "statistics.json").write_text("{}")  # nobody reads it: see `use_drawn`
    return found


def use_drawn(monkeypatch: pytest.MonkeyPatch, *drawn: DrawnStatistics) -> None:
    """Has these be what their folders hold."""
    known = {each.folder: each for each in drawn}
    monkeypatch.setattr(allotting, "open_statistics", lambda folder, graph: known[folder])
