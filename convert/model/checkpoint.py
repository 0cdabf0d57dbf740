"""A checkpoint folder: one safetensors file, or shards with an index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Faults, InputError
from .safetensors import MappedTensor, SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class SourceStamp:
    """What a source file looked like when it was opened. Units: bytes, nanoseconds."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


class Checkpoint:
    """All tensors of a folder by name, mapped, none read.

    Raises: InputError with all faults of the folder (missing, truncated or foreign shards).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        index, total_size = _read_index(folder)
        if index and SINGLE_FILE not in index.values() and (folder / SINGLE_FILE).exists():
            raise InputError(f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}: expected one; remove the stale one")
        paths = sorted(set(index.values())) if index else [SINGLE_FILE]
        missing = [name for name in paths if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: missing {', '.join(missing)}" + _pickle_hint(folder, index))
        self.files = tuple(SafetensorsFile(folder / name) for name in paths)
        self.stamps = tuple(_stamp(file.path) for file in self.files)
        self.tensors = self._collect(index)
        n_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        if total_size not in (None, n_bytes):
            self.notes.append(f"{INDEX_FILE} gives total_size {total_size}, the shards hold {n_bytes} bytes")

    def _collect(self, index: dict[str, str] | None) -> dict[str, MappedTensor]:
        faults = Faults()
        found: dict[str, MappedTensor] = {}
        home: dict[str, str] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                if name in found:
                    faults.add(f"tensor '{name}' is in both {home[name]} and {file.path.name}")
                found[name], home[name] = tensor, file.path.name
        for name, shard in (index or {}).items():
            if name not in found:
                faults.add(f"{INDEX_FILE} places tensor '{name}' in {shard}, which does not hold it")
            elif home[name] != shard:
                faults.add(f"{INDEX_FILE} places tensor '{name}' in {shard}, found in {home[name]}")
        if index:
            self.notes += [
                f"tensor '{name}' of {home[name]} is not in {INDEX_FILE}" for name in found if name not in index
            ]
        faults.raise_if_any(str(self.folder))
        return found

    def check_unchanged(self) -> None:
        """Raises InputError if a source file was replaced or written to since it was opened."""
        for stamp in self.stamps:
            if not stamp.path.is_file() or _stamp(stamp.path) != stamp:
                raise InputError(f"{stamp.path}: changed while it was being converted; nothing was published")


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors under the names a checkpoint uses."""
    return (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists()


def _stamp(path: Path) -> SourceStamp:
    status = path.stat()
    return SourceStamp(path, status.st_size, status.st_mtime_ns, status.st_ino)


def _pickle_hint(folder: Path, index: dict[str, str] | None) -> str:
    if index is not None:
        return ""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
    return f" (found {pickles[0]}: pickle weights are refused, save as safetensors)" if pickles else ""


def _read_index(folder: Path) -> tuple[dict[str, str] | None, Any]:
    """The weight map and `total_size` of the index; None for what is not there."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None, None
    try:
        index = json.loads(path.read_bytes())
        weight_map, metadata = index["weight_map"], index.get("metadata")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors index: {error!r}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map must be a non-empty object of tensor name to file name")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise InputError(f"{path}: tensor '{name}' is placed in {shard!r}: expected a file name inside the folder")
    return weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None


def _is_plain_name(name: str) -> bool:
    forbidden = ("/", "\\", "\0", ":")
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in forbidden)
