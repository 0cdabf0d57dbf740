"""A checkpoint folder: one safetensors file, or shards with an index."""

from __future__ import annotations

from pathlib import Path

from ..errors import Faults
from .open_file import SourceFiles, SourceStamp
from .safetensors import SafetensorsFile, StoredTensor
from .weight_files import INDEX_FILE, SINGLE_FILE, WeightIndex, find_weights, has_weights
from .wrapped_names import model_names, naming_note

__all__ = ["INDEX_FILE", "SINGLE_FILE", "Checkpoint", "SourceStamp", "has_weights"]

# Faults and notes of one kind that are told one by one; of more, how many there are and the first.
_SHOWN = 8


class Checkpoint(SourceFiles):
    """All tensors of a folder by the model's names for them, none read.

    Raises: InputError with all faults of the folder (missing, truncated or foreign shards).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = find_weights(folder)
        self.notes: list[str] = [found.note] if found.note else []
        self._weights = [SafetensorsFile(folder / name) for name in found.names]
        super().__init__(self._weights)
        self.tensors = self._collect(found.index)
        n_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        if found.index and found.index.total_size not in (None, n_bytes):
            index = found.index
            self.notes.append(f"{index.name} gives total_size {index.total_size}, the shards hold {n_bytes} bytes")

    def _collect(self, index: WeightIndex | None) -> dict[str, StoredTensor]:
        names = model_names(name for file in self._weights for name in file.tensors)
        if (note := naming_note(names)) is not None:
            self.notes.append(note)
        faults, twice = Faults(), list[str]()
        found: dict[str, StoredTensor] = {}
        home: dict[str, str] = {}
        for file in self._weights:
            for stored_name, tensor in file.tensors.items():
                name = names[stored_name]
                if name in found:
                    twice.append(_twice(found[name], home[name], tensor, file.path.name))
                found[name] = tensor if name == stored_name else tensor.renamed(name)
                home[name] = file.path.name
        _tell(faults, twice, "tensors are given more than once")
        if index:
            self._compare(index, home, faults)
        faults.raise_if_any(str(self.folder))
        return found

    def _compare(self, index: WeightIndex, home: dict[str, str], faults: Faults) -> None:
        """The index must place every tensor where it is; what it forgot is used, with a note."""
        names, misplaced = model_names(index.weight_map), list[str]()
        for stored_name, shard in index.weight_map.items():
            name = names[stored_name]
            if name not in home:
                misplaced.append(f"{index.name} places tensor '{stored_name}' in {shard}, which does not hold it")
            elif home[name] != shard:
                misplaced.append(f"{index.name} places tensor '{stored_name}' in {shard}, found in {home[name]}")
        _tell(faults, misplaced, f"tensors are not where {index.name} places them, which is of other files")
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


def _tell(faults: Faults, sentences: list[str], together: str) -> None:
    """Each sentence, or of many, which have one cause, how many and the first."""
    if len(sentences) > _SHOWN:
        faults.add(f"{len(sentences)} {together}, such as: {sentences[0]}")
    else:
        for sentence in sentences:
            faults.add(sentence)
