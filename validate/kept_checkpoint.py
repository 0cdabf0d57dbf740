"""What stands for a checkpoint that is not at hand: its config, tokenizer and templates, and the head that its kept runs are
read by.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from ..graph.config import CONFIG_FILE
from ..graph.dtypes import DType, Float32, widen
from ..graph.errors import InputError
from ..graph.graph import WeightGraph
from ..graph.opening import open_graph
from ..graph.roles import Role
from ..graph.source.assets import NAMED_TEMPLATES
from ..graph.tensor import Shape, TensorView

_HEAD, _KEPT = "head.bin", "kept.json"
_TEXTS = ("*.json", "*.jinja", f"{NAMED_TEMPLATES}/*.jinja")
_LARGEST_TEXT = 64 << 20
_AT_ONCE = 1 << 20  # elements


def write_kept(graph: WeightGraph, folder: Path) -> None:
    """Writes what stands for a checkpoint into an empty folder."""
    for pattern in _TEXTS:
        for path in sorted(graph.folder.glob(pattern)):
            if path.is_file() and not path.name.endswith(".index.json") and path.stat().st_size <= _LARGEST_TEXT:
                copy = folder / path.relative_to(graph.folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    config = {**graph.config.raw, "vocab_size": graph.config.vocab_size}  # of a table that was resized
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    view = graph.head
    with (folder / _HEAD).open("wb") as file:
        step = max(1, _AT_ONCE // view.n_cols)
        for start in range(0, view.n_rows, step):
            _narrowed(view.rows(start, min(start + step, view.n_rows)), view.dtype).tofile(file)
    kept = {"name": graph.name, "is_tied": graph.is_tied, "dtype": view.dtype.value, "shape": list(view.shape)}
    (folder / _KEPT).write_text(json.dumps(kept), encoding="utf-8")


def open_kept(folder: Path) -> WeightGraph:
    """The graph of a checkpoint that is not at hand: of its weights the head alone can be read.

    Raises: InputError if this is not what was written.
    """
    try:
        kept = json.loads((folder / _KEPT).read_bytes())
        role = Role.EMBED if kept["is_tied"] else Role.LM_HEAD
        head = _Head(folder / _HEAD, DType(kept["dtype"]), tuple(map(int, kept["shape"])))
        graph = open_graph(folder, name=str(kept["name"]), weights=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: does not hold what stands for a checkpoint: {error}") from None
    return graph.with_weights({(role, None): head})


class _Head(TensorView):
    """A matrix in a file of its own."""

    def __init__(self, path: Path, dtype: DType, shape: Shape) -> None:
        super().__init__("head", dtype, shape)
        self._bits = np.memmap(path, f"<u{dtype.itemsize}", "r", shape=shape)

    def _rows(self, start: int, stop: int) -> Float32:
        return widen(np.array(self._bits[start:stop]), self.dtype)


def _narrowed(values: Float32, dtype: DType) -> np.ndarray:
    """Values as they were stored, of which they were widened."""
    if dtype is DType.BF16:
        return (values.view(np.uint32) >> 16).astype("<u2")
    return values.astype("<f2" if dtype is DType.F16 else "<f4")
