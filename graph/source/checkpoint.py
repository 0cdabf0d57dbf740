"""A checkpoint folder: one safetensors file, or shards with an index."""

from __future__ import annotations

from pathlib import Path

from ..errors import Faults
from ..families.family import PROJECTION
from .open_file import SourceFiles
from .parts import parts_note, text_names
from .safetensors import SafetensorsFile, StoredTensor
from .weight_files import INDEX_FILE, SINGLE_FILE, WeightIndex, find_weights, has_weights
from .wrapped_names import model_names, naming_note

__all__ = ["INDEX_FILE", "SINGLE_FILE", "Checkpoint", "has_weights"]

# Notes of one kind that are told one by one; of more, how many there are and the first.
_SHOWN = 8
# Before the names of a projection's tensors, wherever its file lies.
_AFTER = PROJECTION.name.removesuffix("linear.weight")


class Checkpoint(SourceFiles):
    """All tensors of a folder by the model's names for them, none read.

    `projection` is the file of a module that comes after the last layer.
    Raises: InputError with all faults of the folder (missing, truncated or foreign shards).
    """

    def __init__(self, folder: Path, *, projection: Path | None = None) -> None:
        self.folder = folder
        found = find_weights(folder)
        self.notes: list[str] = [found.note] if found.note else []
        self._weights = [SafetensorsFile(folder / name) for name in found.names]
        after = None if projection is None else SafetensorsFile(projection)
        super().__init__([*self._weights, *([after] if after else [])])
        self.tensors = self._collect(found.index)
        if after is not None:
            self.tensors |= {f"{_AFTER}{name}": each.renamed(f"{_AFTER}{name}") for name, each in after.tensors.items()}
        n_bytes = sum(tensor.nbytes for file in self._weights for tensor in file.tensors.values())
        if found.index and found.index.total_size not in (None, n_bytes):
            index = found.index
            self.notes.append(f"{index.name} gives total_size {index.total_size}, the shards hold {n_bytes} bytes")

    def _collect(self, index: WeightIndex | None) -> dict[str, StoredTensor]:
        names, left = text_names(model_names(name for file in self._weights for name in file.tensors))
        self.notes += [note for note in (naming_note(names), parts_note(left)) if note is not None]
        faults, twice = Faults(), list[str]()
        found: dict[str, StoredTensor] = {}
        home: dict[str, str] = {}
        for file in self._weights:
            for stored_name, tensor in file.tensors.items():
                if (name := names.get(stored_name)) is None:
                    continue
                if name in found:
                    twice.append(_twice(found[name], home[name], tensor, file.path.name))
                found[name] = tensor if name == stored_name else tensor.renamed(name)
                home[name] = file.path.name
        faults.add_alike(twice, "tensors are given more than once")
        if index:
            self._compare(index, home, faults)
        faults.raise_if_any(str(self.folder))
        return found

    def _compare(self, index: WeightIndex, home: dict[str, str], faults: Faults) -> None:
        """The index must place every tensor where it is; what it forgot is used, with a note."""
        (names, _), misplaced = text_names(model_names(index.weight_map)), list[str]()
        for stored_name, shard in index.weight_map.items():
            if (name := names.get(stored_name)) is None:
                continue
            if name not in home:
                misplaced.append(f"{index.name} places tensor '{stored_name}' in {shard}, which does not hold it")
            elif home[name] != shard:
                misplaced.append(f"{index.name} places tensor '{stored_name}' in {shard}, found in {home[name]}")
        faults.add_alike(misplaced, f"tensors are not where {index.name} places them, which is of other files")
        placed = set(names.values())
        forgotten = [name for name in home if name not in placed]
        if len(forgotten) > _SHOWN:
            self.notes.append(f"{len(forgotten)} tensors are not in {index.name}, such as '{forgotten[0]}'")
        else:
            self.notes += [f"tensor '{name}' of {home[name]} is not in {index.name}" for name in forgotten]


def _twice(first: StoredTensor, first_file: str, second: StoredTensor, second_file: str) -> str:
    if first.stored_name == second.stored_name:
        return f"tensor '{first.stored_name}' is in both {first_file} and {second_file}"
    return f"tensors '{first.stored_name}' and '{second.stored_name}' are one tensor of the model under two names"
