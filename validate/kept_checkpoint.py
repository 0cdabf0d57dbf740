"""What stands for a checkpoint that is not at hand: its config, tokenizer and templates, and the head that its kept runs are
read by.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..graph.config import CONFIG_FILE
from ..graph.errors import InputError, UsageError
from ..graph.graph import WeightGraph
from ..graph.opening import open_graph
from ..graph.reference.cores import cut
from ..graph.roles import Address, Role, find_role
from ..graph.source.assets import NAMED_TEMPLATES
from ..graph.source.config_file import find_modules
from ..graph.tensor import TensorView
from ..quantize.encoding import get_encoding
from ..quantize.stored import EncodedTensor, StoredPart
from ..targets.hub_folder import common_files

_HEAD, _KEPT = "head.bin", "kept.json"
_TEXTS = ("*.json", "*.jinja", f"{NAMED_TEMPLATES}/*.jinja")
_LARGEST_TEXT = 64 << 20
_AT_ONCE = 1 << 20  # elements


def write_kept(graph: WeightGraph, folder: Path) -> None:
    """Writes what stands for a checkpoint into an empty folder."""
    for pattern in _TEXTS if graph.checkpoint is None or not graph.checkpoint.are_all else ():
        for path in sorted(graph.folder.glob(pattern)):
            if path.is_file() and not path.name.endswith(".index.json") and path.stat().st_size <= _LARGEST_TEXT:
                copy = folder / path.relative_to(graph.folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    if graph.checkpoint is not None and graph.checkpoint.are_all:
        for name, data in common_files(graph).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    if graph.config.vectors is not None and (modules := find_modules(graph.config.raw, graph.folder)) is not None:
        for name, data in modules.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    config = {**graph.config.raw, "vocab_size": graph.config.vocab_size}  # of a table that was resized
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    kept: dict[str, Any] = {"name": graph.name, "quantised_as": graph.quantised_as}
    head = graph.top.get(_head_role(graph))
    if head is not None:
        view, encoding = head.view, get_encoding("F32" if head.view.stored_as else head.view.dtype.value)
        with (folder / _HEAD).open("wb") as file:
            for low, high in cut(view.n_rows, max(1, _AT_ONCE // view.n_cols)):
                (values,) = encoding.encode(view.rows(low, high))
                values.tofile(file)
        kept |= {"role": head.role.value, "encoding": encoding.name, "shape": list(view.shape)}
    (folder / _KEPT).write_text(json.dumps(kept), encoding="utf-8")


def _head_role(graph: WeightGraph) -> Role:
    """What follows the rows that are kept: the projection of a model that gives vectors, which not every one has."""
    if graph.config.vectors is not None:
        return Role.PROJECTION
    return Role.EMBED if graph.is_tied else Role.LM_HEAD


def open_kept(folder: Path) -> WeightGraph:
    """The graph of a checkpoint that is not at hand: of its weights the head alone can be read.

    Raises: InputError if this is not what was written.
    """
    try:
        kept = json.loads((folder / _KEPT).read_bytes())
        graph = open_graph(folder, name=str(kept["name"]), weights=False)
        heads: dict[Address, TensorView] = {}
        if "role" in kept:
            place, shape = StoredPart(folder / _HEAD, 0), tuple(map(int, kept["shape"]))
            head = EncodedTensor("head", shape, get_encoding(kept["encoding"]), (place,))
            heads[find_role(kept["role"]), None] = head
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise InputError(f"{folder}: does not hold what stands for a checkpoint: {error}") from None
    return replace(graph.with_weights(heads), quantised_as=kept.get("quantised_as"))
