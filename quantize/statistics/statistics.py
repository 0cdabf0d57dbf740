"""What a calibration measured, as tuning reads it.

This is the part of it that allotting bits needs, until the whole of it is merged: STATS/statistics.json, imatrix.gguf and
gradients.npz, one array [slices, rows] a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import InputError
from ...graph.graph import WeightGraph
from ...graph.json_text import read_object
from ...graph.roles import Address
from ..imatrix import ImportanceMatrix, read_importance


@dataclass(frozen=True)
class Text:
    """A text that was run."""

    name: str
    sha256: str
    n_tokens: int


@dataclass(frozen=True)
class Statistics:
    """A folder of statistics. Shapes: columns [slices, cols], gradients [slices, rows]."""

    folder: Path
    n_tokens: int
    texts: tuple[Text, ...]
    sha256: str
    _shapes: Mapping[Address, tuple[int, ...]] = field(repr=False)
    _importance: ImportanceMatrix = field(repr=False)
    _gradients: Mapping[str, Float32] = field(repr=False)

    def columns(self, address: Address) -> Float32 | None:
        """Mean squared input of each column."""
        return self._importance.of_weight(address, self._shapes[address])

    def gradients(self, address: Address) -> Float32 | None:
        """Sum over tokens of the squared gradient by each row's output."""
        role, layer = address
        return self._gradients.get(role.value if layer is None else f"{role.value}.{layer}")


def open_statistics(folder: Path, graph: WeightGraph) -> Statistics:
    """The statistics of a folder. Raises: InputError for a folder that holds none."""
    path = folder / "statistics.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no statistics.json, which lfm-convert calibrate writes")
    said = read_object(path)
    with np.load(folder / "gradients.npz") as stored:
        gradients = dict(stored)
    return Statistics(
        folder=folder,
        n_tokens=int(said["n_tokens"]),
        texts=tuple(Text(text["name"], text["sha256"], text["tokens"]) for text in said["texts"]),
        sha256=sha256(path.read_bytes()).hexdigest(),
        _shapes={weight.address: weight.shape for weight in graph.weights()},
        _importance=read_importance(folder / "imatrix.gguf", graph.config.family),
        _gradients=gradients,
    )
