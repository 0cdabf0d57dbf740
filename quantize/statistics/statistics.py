"""What was gathered of a checkpoint, read back: for whoever chooses codes and bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.dtypes import DType, Float32
from ...graph.errors import InputError
from ...graph.files import hash_files, is_file
from ...graph.graph import WeightGraph
from ...graph.json_text import read_object
from ...graph.roles import Address, Role
from ...graph.source.safetensors import SafetensorsFile, StoredTensor
from ...graph.tensor import Shape
from ..gguf_file.tensor_names import tensor_name
from .layout import (
    COLUMNS_FILE,
    GRADIENTS_FILE,
    IDS,
    LENGTHS,
    LOOKUPS,
    MOMENTS,
    STATISTICS_FILE,
    TOKENS_FILE,
    VERSION,
    has_moments,
    measured_weights,
    moments_file,
)
from .triangle import n_packed, unpack

_NEEDED = (TOKENS_FILE, COLUMNS_FILE, GRADIENTS_FILE)
_SHOWN = 12  # characters of a hash


@dataclass(frozen=True)
class Text:
    """A text that was run: the name of its file, its hash, and its tokens."""

    name: str
    sha256: str
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one checkpoint. `sha256` is that of statistics.json, which lists the hashes of all other files.

    Shapes: slices are the experts of a stack, else one; None for a weight that is no matrix, router or token table.
    """

    folder: Path
    sha256: str
    checkpoint: str
    texts: tuple[Text, ...]
    n_tokens: int
    seed: int
    facts: Mapping[str, Any] = field(repr=False)
    graph: WeightGraph = field(repr=False)

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest of an artifact says of the statistics that it was tuned by."""
        return {
            "statistics_sha256": self.sha256,
            "texts": [{"name": text.name, "sha256": text.sha256} for text in self.texts],
        }

    @cached_property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """The token ids that were run, each chunk from an empty state."""
        arrays = self._open(TOKENS_FILE)
        ids, lengths = (_int32(self.folder / TOKENS_FILE, arrays, name) for name in (IDS, LENGTHS))
        if lengths.min(initial=1) < 1 or lengths.sum() != len(ids):
            raise InputError(f"{self.folder / TOKENS_FILE}: lengths of chunks do not add up to {len(ids)} tokens")
        return tuple(tuple(chunk.tolist()) for chunk in np.split(ids, np.cumsum(lengths)[:-1]))

    def columns(self, address: Address) -> Float32 | None:
        """Mean square of each column's input [slices, columns], borrowed tokens among them.

        Of a token table that is no head they are relative: one on average.
        """
        return self._of(COLUMNS_FILE, address)

    def gradients(self, address: Address) -> Float32 | None:
        """Sum over tokens of the squared gradients by each row's output [slices, rows], of the loss of one drawn label."""
        return self._of(GRADIENTS_FILE, address)

    @property
    def lookups(self) -> Float32:
        """What the gradients of a tied table have of its being looked up [1, rows]; the rest is the head's."""
        tensor = _tensor(self.folder / GRADIENTS_FILE, self._open(GRADIENTS_FILE), LOOKUPS, DType.F32)
        expected = (1, self._shapes[(Role.EMBED, None)][0])
        if tensor.shape != expected:
            raise InputError(
                f"{self.folder / GRADIENTS_FILE}: '{LOOKUPS}' is of shape {list(tensor.shape)}: expected {list(expected)}"
            )
        return tensor.read()

    def counts(self, address: Address) -> Float32 | None:
        """Tokens that reached each slice [slices]; what an expert borrowed is not counted."""
        shape = self._shapes.get(address)
        if shape is None:
            return None
        n = shape[0] if len(shape) == 3 else 1
        found = self.facts["tokens"].get(tensor_name(address), [self.n_tokens])
        if not isinstance(found, list) or len(found) != n or not all(type(each) is int and each >= 0 for each in found):
            raise InputError(
                f"{self.folder / STATISTICS_FILE}: tokens of '{tensor_name(address)}': expected {n} numbers"
            )
        return np.array(found, np.float32)

    @property
    def has_moments(self) -> bool:
        """Whether moments were kept."""
        return bool(self.facts.get("has_moments"))

    def moments(self, address: Address, which: int = 0) -> Float32 | None:
        """Mean of x xᵀ of the inputs x of a slice [columns, columns], borrowed ones among them; None if not kept."""
        shape = self._shapes.get(address)
        if not self.has_moments or shape is None or not has_moments(self.graph, address):
            return None
        name, n = moments_file(address), shape[-1]
        tensor = _tensor(self.folder / name, self._open(name), MOMENTS, DType.F32)
        expected = (shape[0] if len(shape) == 3 else 1, n_packed(n))
        if tensor.shape != expected:
            raise InputError(f"{self.folder / name}: is of shape {list(tensor.shape)}: expected {list(expected)}")
        return unpack(tensor.rows(which, which + 1)[0], n)

    @cached_property
    def _shapes(self) -> Mapping[Address, Shape]:
        return measured_weights(self.graph)

    @cached_property
    def _files(self) -> dict[str, SafetensorsFile]:
        return {}

    def _open(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self.folder / name)
        return self._files[name]

    def _of(self, file: str, address: Address) -> Float32 | None:
        shape = self._shapes.get(address)
        if shape is None:
            return None
        tensor = _tensor(self.folder / file, self._open(file), tensor_name(address), DType.F32)
        n = shape[-1] if file == COLUMNS_FILE else shape[-2]
        expected = (shape[0] if len(shape) == 3 else 1, n)
        if tensor.shape != expected:
            raise InputError(
                f"{self.folder / file}: '{tensor.name}' is of shape {list(tensor.shape)}: expected {list(expected)}"
            )
        return tensor.read()


def open_statistics(folder: Path, graph: WeightGraph, *, checkpoint: str | None = None) -> Statistics:
    """The statistics of a folder, which must be of this graph.

    `checkpoint` is the sha256 of the checkpoint's files, if it is known (the manifest's); rows of every weight are
    compared anyway, where weights are at hand, and the chat template.
    Raises: InputError for a folder of another checkpoint or template, another version, or a damaged one.
    """
    path = folder / STATISTICS_FILE
    try:
        facts, sha256 = read_object(path), hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {STATISTICS_FILE}: expected a folder of 'lfm-convert calibrate'") from None
    _check_facts(path, facts)
    _check_files(folder, facts["files"])
    _refuse_foreign(folder, facts, graph, checkpoint)
    return Statistics(
        folder=folder,
        sha256=sha256,
        checkpoint=facts["checkpoint"],
        texts=tuple(Text(text["name"], text["sha256"], text["tokens"]) for text in facts["texts"]),
        n_tokens=facts["n_tokens"],
        seed=facts["seed"],
        facts=facts,
        graph=graph,
    )


def sample_hash(graph: WeightGraph) -> str:
    """sha256 of the first row of every weight, in model order: another checkpoint, a fine-tune too, has another."""
    digest = hashlib.sha256()
    for weight in graph.weights():
        digest.update(f"{tensor_name(weight.address)} {weight.shape}\n".encode())
        digest.update(weight.view.rows(0, 1).astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def template_hash(graph: WeightGraph) -> str:
    """sha256 of the chat template; empty without one."""
    template = graph.assets.chat_template
    return "" if template is None else hashlib.sha256(template.encode()).hexdigest()


# What statistics.json must hold, and what reads as that; texts and files are looked at one by one.
_FACTS: Mapping[str, type] = {
    "checkpoint": str,
    "sample": str,
    "template": str,
    "texts": list,
    "n_tokens": int,
    "seed": int,
    "tokens": dict,
    "files": dict,
}


def _check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    version = facts.get("version")
    if version != VERSION:
        raise InputError(
            f"{path}: is of version {version!r:.80}: expected {VERSION}; 'lfm-convert calibrate' gathers it anew"
        )
    for key, kind in _FACTS.items():
        if type(facts.get(key)) is not kind:
            raise InputError(f"{path}: '{key}' is {facts.get(key)!r:.80}: expected {kind.__name__}")
    for text in facts["texts"]:
        kinds = {"name": str, "sha256": str, "tokens": int}
        if not isinstance(text, dict) or any(type(text.get(key)) is not kind for key, kind in kinds.items()):
            raise InputError(f"{path}: 'texts' holds {text!r:.80}: expected name, sha256 and tokens")


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Sizes of all, and hashes of those that are small: moments may be many gigabytes. Raises: InputError."""
    for name in (*_NEEDED, *files):
        listed, path = files.get(name), folder / name
        if not isinstance(listed, dict) or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{folder / STATISTICS_FILE}: lists '{name}' as {listed!r:.80}")
        n_bytes = path.stat().st_size if is_file(path) else None
        if n_bytes is None or n_bytes != listed.get("bytes"):
            found = "is not there" if n_bytes is None else f"has {n_bytes} bytes"
            raise InputError(f"{path}: {found}: expected {listed.get('bytes')} bytes; the statistics are damaged")
    small = [name for name in files if not name.startswith("moments/")]
    for name, found in zip(small, hash_files([folder / name for name in small], jobs=1), strict=True):
        if found != files[name].get("sha256"):
            raise InputError(f"{folder / name}: is not as it was written: the statistics are damaged")


def _refuse_foreign(folder: Path, facts: Mapping[str, Any], graph: WeightGraph, checkpoint: str | None) -> None:
    if checkpoint is not None and facts["checkpoint"] != checkpoint:
        was, now = facts["checkpoint"][:_SHOWN], checkpoint[:_SHOWN]
        raise InputError(
            f"{folder}: statistics of another checkpoint than {graph.name}: of sha256 {was}…, this is {now}…"
        )
    if graph.is_at_hand and facts["sample"] != sample_hash(graph):
        raise InputError(
            f"{folder}: statistics of another checkpoint than {graph.name}: its weights are not those of {facts.get('model')}"
        )
    is_known = graph.is_at_hand or graph.assets.chat_template is not None  # a config alone has no template beside it
    if is_known and facts["template"] != template_hash(graph):
        was = f"sha256 {facts['template'][:_SHOWN]}…" if facts["template"] else "there was none"
        raise InputError(
            f"{folder}: statistics with another chat template than {graph.name} has: {was}; gather them anew"
        )


def _tensor(path: Path, file: SafetensorsFile, name: str, dtype: DType) -> StoredTensor:
    found = file.tensors.get(name)
    if found is None or found.dtype is not dtype:
        raise InputError(f"{path}: has no '{name}' of {dtype.value}")
    return found


def _int32(path: Path, file: SafetensorsFile, name: str) -> np.ndarray:
    tensor = _tensor(path, file, name, DType.I32)
    if len(tensor.shape) != 1:
        raise InputError(f"{path}: '{name}' is of shape {list(tensor.shape)}: expected one axis")
    return tensor.elements(0, tensor.shape[0])
