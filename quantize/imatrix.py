"""Importance matrices: how much each column of a weight is used, as llama.cpp's `llama-imatrix` writes it.

For each weight, and each expert of a stack, the file holds the sum over tokens of the squared input of every
column, and how many tokens that was. Files are GGUF, tensors `NAME.in_sum2` [experts, columns] and `NAME.counts`
[experts, 1]; older ones (`.dat`) are

| bytes | type | meaning |
|---|---|---|
| 0-3 | int32 | number of entries |
| … | | entries: length of the name (int32), name, calls (int32), number of values (int32), float32 values |
| … | | perhaps: number of chunks (int32), length of the data set's name (int32), name |

all little-endian, where a value is already divided by its count and multiplied by the calls.
Source: llama.cpp `tools/imatrix/imatrix.cpp`, `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..graph.dtypes import Float32
from ..graph.errors import InputError
from ..graph.families.family import Family
from ..graph.roles import Address
from .gguf_file.header import MAGIC, KeyValue, TensorInfo, aligned, header_bytes, string, strings, uint32
from .gguf_file.reader import read_gguf
from .gguf_file.tensor_names import tensor_name

if TYPE_CHECKING:
    from .calibration import Use

# What it is called in a folder of statistics.
IMATRIX_FILE = "imatrix.gguf"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_LISTED = 8  # names a sentence holds
_TEXT_BYTES = 127  # llama-quantize cuts what it notes of a matrix


@dataclass(frozen=True, kw_only=True)
class ImportanceMatrix:
    """What an importance file says: mean squares by tensor name, slices end to end.

    Weights are found by the names of their `family`.

    `never_hit` lists by name the experts no token reached, whose columns all count as 1. So do those of an expert
    whose sums are all zero: an encoder that weighs every column by nothing has nothing to keep.
    """

    path: Path
    family: Family | None = field(default=None, repr=False)
    means: Mapping[str, Float32]
    never_hit: Mapping[str, tuple[int, ...]]
    datasets: tuple[str, ...]
    n_chunks: int

    def of(self, name: str, *, n_slices: int, n_cols: int) -> Float32 | None:
        """Importance [n_slices, n_cols] of a tensor, or None if the file has none.

        Raises: InputError if it is for a tensor of another size.
        """
        found = self.means.get(name)
        if found is None:
            return None
        if found.size != n_slices * n_cols:
            raise InputError(
                f"{self.path}: importance of '{name}' has {found.size} values: expected {n_slices} x {n_cols}; "
                "it was computed for another model"
            )
        found = found.reshape(n_slices, n_cols)
        return np.where(found.any(axis=1, keepdims=True), found, np.float32(1))

    def of_weight(self, address: Address, shape: tuple[int, ...]) -> Float32 | None:
        """Importance [experts, columns] of a weight, one row where it is no stack; None if the file has none."""
        return self.of(tensor_name(address, self.family), n_slices=shape[0] if len(shape) == 3 else 1, n_cols=shape[-1])

    def refuse_foreign(self, addresses: Iterable[Address]) -> None:
        """Raises InputError if not one of these weights has an entry: the file was made for another model."""
        if not any(tensor_name(address, self.family) in self.means for address in addresses):
            known = (
                f"the first of its {len(self.means)} entries is '{min(self.means)}'" if self.means else "it is empty"
            )
            raise InputError(f"{self.path}: has no importance of any tensor of this model: {known}")

    def notes(self, weighed: Mapping[Address, tuple[int, ...]], without: Sequence[str]) -> tuple[str, ...]:
        """What the file lacks of the weights, by address and shape, that were to be weighed; `without` names more."""
        notes = []
        if without:
            notes.append(f"{self.path.name} has no importance of {_listed(without)}: all columns count the same")
        for address, shape in weighed.items():
            name, n_slices = tensor_name(address, self.family), shape[0] if len(shape) == 3 else 1
            unused = {*self.never_hit.get(name, ())}
            if name in self.means:
                unused |= {*np.flatnonzero(~self.means[name].reshape(n_slices, -1).any(axis=1)).tolist()}
            if unused:
                whose = f"experts {_listed([str(i) for i in sorted(unused)])} of {name}" if len(shape) == 3 else name
                notes.append(f"{self.path.name}: no token reached {whose}: all columns count the same")
        return tuple(notes)

    def metadata(self) -> list[KeyValue]:
        """What llama-quantize notes of it in the file it writes, but of files only their names: no place on a disk."""
        pairs = [string("quantize.imatrix.file", _cut(self.path.name))]
        if self.datasets:
            pairs.append(string("quantize.imatrix.dataset", _cut(_base_name(self.datasets[0]))))
        pairs.append(uint32("quantize.imatrix.entries_count", len(self.means)))
        if self.n_chunks > 0:
            pairs.append(uint32("quantize.imatrix.chunks_count", self.n_chunks))
        return pairs


def read_importance(path: Path, family: Family | None = None) -> ImportanceMatrix:
    """Reads either format, or that of a folder of statistics; `family` names tensors that are not called by their role.

    Raises: InputError for a file that is neither, is damaged, or holds values that are not finite or are negative.
    """
    path = path / IMATRIX_FILE if path.is_dir() else path
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == MAGIC
        found = replace(_read_gguf(path) if is_gguf else _read_legacy(path), family=family)
    except struct.error:
        raise InputError(f"{path}: cannot be read as an importance matrix: it ends before what it announces") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as an importance matrix: {error}") from None
    for name, values in found.means.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(f"{path}: importance of '{name}' is not finite or negative")
    return found


def importance_bytes(uses: Mapping[str, Use], *, datasets: tuple[str, ...], n_chunks: int, chunk_size: int) -> bytes:
    """The file llama-imatrix would write; names in order. Units: `chunk_size` in tokens."""
    pairs = [
        string("general.type", "imatrix"),
        strings("imatrix.datasets", datasets),
        uint32("imatrix.chunk_count", n_chunks),
        uint32("imatrix.chunk_size", chunk_size),
    ]
    infos: list[TensorInfo] = []
    data = bytearray()
    for name, use in sorted(uses.items()):
        for suffix, values in ((_SUMS, use.sums), (_COUNTS, use.counts[:, None])):
            infos.append(TensorInfo(name + suffix, values.shape, "F32", len(data)))
            data += values.astype("<f4").tobytes()
            data += bytes(aligned(len(data)) - len(data))
    return header_bytes(pairs, infos) + bytes(data)


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = read_gguf(path)
    tensors: dict[str, Float32] = {}
    for info in file.tensors:
        if info.encoding != "F32" or not info.name.endswith((_SUMS, _COUNTS)):
            raise InputError(f"{path}: tensor '{info.name}' is not part of an importance matrix")
        count = int(np.prod(info.shape))
        tensors[info.name] = np.fromfile(path, "<f4", count, offset=file.data_offset + info.offset)
    means, never_hit = {}, {}
    for name in (key.removesuffix(_SUMS) for key in tensors if key.endswith(_SUMS)):
        sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
        if counts is None or sums.size % counts.size:
            raise InputError(f"{path}: importance of '{name}' has no counts that fit it")
        hit = counts[:, None] > 0
        mean = np.ones((counts.size, sums.size // counts.size), np.float32)
        np.divide(sums.reshape(mean.shape), counts[:, None], out=mean, where=hit)
        means[name] = mean.ravel()
        if not hit.all():
            never_hit[name] = tuple(np.flatnonzero(~hit[:, 0]).tolist())
    datasets, n_chunks = file.metadata.get("imatrix.datasets", []), file.metadata.get("imatrix.chunk_count", 0)
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise InputError(f"{path}: imatrix.datasets is {datasets!r:.80}: expected a list of texts")
    if type(n_chunks) is not int or not 0 <= n_chunks < 2**32:
        raise InputError(f"{path}: imatrix.chunk_count is {n_chunks!r:.80}: expected a number of chunks")
    return ImportanceMatrix(path=path, means=means, never_hit=never_hit, datasets=tuple(datasets), n_chunks=n_chunks)


def _read_legacy(path: Path) -> ImportanceMatrix:
    data = path.read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return int(value)

    def take(n_bytes: int) -> bytes:
        nonlocal at
        if not 0 <= n_bytes <= len(data) - at:
            raise InputError(f"{path}: is neither GGUF nor an importance matrix: {n_bytes} bytes are declared at {at}")
        at += n_bytes
        return data[at - n_bytes : at]

    means: dict[str, Float32] = {}
    for _ in range(number()):
        name = take(number()).decode()
        calls = number()
        values = np.frombuffer(take(4 * number()), "<f4").astype(np.float32)
        means[name] = values / np.float32(max(1, calls))
    n_chunks = number() if at < len(data) else 0
    datasets = (take(number()).decode(),) if at < len(data) else ()
    return ImportanceMatrix(path=path, means=means, never_hit={}, datasets=datasets, n_chunks=n_chunks)


def _base_name(text: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _cut(text: str) -> str:
    return text.encode()[:_TEXT_BYTES].decode(errors="ignore")
