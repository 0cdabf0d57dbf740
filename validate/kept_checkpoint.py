"""What stands for a checkpoint that is not at hand: its config, tokenizer and templates, and the head that its kept runs are
read by.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from ..graph.config import CONFIG_FILE
from ..graph.errors import InputError, UsageError
from ..graph.graph import WeightGraph
from ..graph.opening import open_graph
from ..graph.reference.cores import cut
from ..graph.roles import Role
from ..graph.source.assets import NAMED_TEMPLATES
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
    config = {**graph.config.raw, "vocab_size": graph.config.vocab_size}  # of a table that was resized
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    view, encoding = graph.head, get_encoding("F32" if graph.head.stored_as else graph.head.dtype.value)
    with (folder / _HEAD).open("wb") as file:
        for low, high in cut(view.n_rows, max(1, _AT_ONCE // view.n_cols)):
            (values,) = encoding.encode(view.rows(low, high))
            values.tofile(file)
    kept = {"name": graph.name, "is_tied": graph.is_tied, "encoding": encoding.name, "shape": list(view.shape)}
    kept |= {} if graph.quantised_as is None else {"quantised_as": graph.quantised_as}
    (folder / _KEPT).write_text(json.dumps(kept), encoding="utf-8")


def open_kept(folder: Path) -> WeightGraph:
    """The graph of a checkpoint that is not at hand: of its weights the head alone can be read.

    Raises: InputError if this is not what was written.
    """
    try:
        kept = json.loads((folder / _KEPT).read_bytes())
        role, place = Role.EMBED if kept["is_tied"] else Role.LM_HEAD, StoredPart(folder / _HEAD, 0)
        head = EncodedTensor("head", tuple(map(int, kept["shape"])), get_encoding(kept["encoding"]), (place,))
        graph = open_graph(folder, name=str(kept["name"]), weights=False)
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise InputError(f"{folder}: does not hold what stands for a checkpoint: {error}") from None
    return replace(graph.with_weights({(role, None): head}), quantised_as=kept.get("quantised_as"))
