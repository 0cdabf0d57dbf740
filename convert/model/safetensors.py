"""Reads safetensors files: header checked in full before any byte of a tensor is used.

Layout (source: the safetensors format specification):
    bytes 0..8     header length n, little-endian u64
    bytes 8..8+n   JSON object: name -> {dtype, shape, data_offsets: [begin, end)}, `__metadata__`
    the rest       tensor bytes, without holes or overlap, offsets relative to its start
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .dtypes import WEIGHT_DTYPES, DType, Float32, first_not_finite, stored, widen
from .tensor import Shape, TensorView

# The largest of the family (64 experts, 40 layers) needs 1 MB; the format allows 100 MB.
_MAX_HEADER_BYTES = 16 << 20
_MAX_AXES = 8
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class _Entry:
    dtype: DType
    shape: Shape
    begin: int
    end: int


class SafetensorsFile:
    """One mapped file; `tensors` lists its handles by name.

    Raises: InputError, naming the file, for anything the specification forbids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data_start, entries = _read_header(path, file.read(min(size, 8)), file, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        self.size = size
        self.tensors = {name: MappedTensor(self, name, entry, data_start) for name, entry in entries.items()}

    def view(self, start: int, stop: int) -> memoryview:
        return memoryview(self._map)[start:stop]

    def release(self, start: int, stop: int) -> None:
        """Lets the kernel drop the pages of a range, so that streaming does not grow the process."""
        if hasattr(self._map, "madvise"):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                self._map.madvise(mmap.MADV_DONTNEED, first, length)


class MappedTensor(TensorView):
    """A tensor of a mapped safetensors file. `offset` is that of its bytes from the file's start."""

    def __init__(self, file: SafetensorsFile, name: str, entry: _Entry, data_start: int) -> None:
        super().__init__(name, entry.dtype, entry.shape)
        self._file = file
        self.path = file.path
        self.offset = data_start + entry.begin

    def _rows(self, start: int, stop: int) -> Float32:
        if self.dtype not in WEIGHT_DTYPES:
            raise InputError(
                f"{self._file.path}: tensor '{self.name}' is {self.dtype.value}: expected F32, F16 or BF16"
            )
        row_bytes = self.n_cols * self.dtype.itemsize
        first, last = self.offset + start * row_bytes, self.offset + stop * row_bytes
        bits = stored(self._file.view(first, last), self.dtype)
        bad = first_not_finite(bits, self.dtype)
        if bad is not None:
            where = np.unravel_index(start * self.n_cols + bad, self.shape)
            value = float(widen(bits[bad : bad + 1], self.dtype)[0])
            index = ", ".join(str(int(i)) for i in where)
            raise InputError(
                f"{self._file.path}: tensor '{self.name}' holds {value} at [{index}]: expected finite weights"
            )
        values = widen(bits, self.dtype).reshape(stop - start, self.n_cols)
        del bits
        self._file.release(first, last)
        return values


def _read_header(path: Path, prefix: bytes, file: Any, size: int) -> tuple[int, dict[str, _Entry]]:
    head = prefix + file.read(min(len(_LFS_POINTER), max(0, size - 8)))
    if head.startswith(_LFS_POINTER):
        raise InputError(
            f"{path}: is a Git LFS pointer, not the weights: fetch the file itself ('git lfs pull' or 'hf download')"
        )
    if len(prefix) < 8:
        raise InputError(f"{path}: has {size} bytes, too few for a safetensors header")
    n_header = int.from_bytes(prefix, "little")
    if n_header > _MAX_HEADER_BYTES and n_header <= size - 8:
        raise InputError(f"{path}: declares a header of {n_header} bytes: expected at most {_MAX_HEADER_BYTES}")
    if n_header > size - 8:
        raise InputError(
            f"{path}: declares a header of {n_header} bytes in a file of {size}: truncated or not safetensors"
        )
    file.seek(8)
    text = file.read(n_header)
    if not text.startswith(b"{"):
        raise InputError(f"{path}: header does not start with '{{': not safetensors")
    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: header is not valid JSON: {error}") from None
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ must be an object of strings")
    entries = {name: _entry(path, name, value) for name, value in raw.items()}
    _check_layout(path, entries, size - 8 - n_header)
    return 8 + n_header, entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{repeated}' is given twice")
    return found


def _entry(path: Path, name: str, value: Any) -> _Entry:
    if not name.isprintable():
        raise InputError(f"{path}: tensor name {name!r} holds characters that cannot be printed")
    try:
        dtype = DType(value["dtype"])
        shape = tuple(value["shape"])
        if len(shape) > _MAX_AXES:
            raise ValueError(f"{len(shape)} axes, expected at most {_MAX_AXES}")
        begin, end = value["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise ValueError("sizes and offsets must be integers, zero or more")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: tensor '{name}' has a malformed header entry: {error}") from None
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected:
        raise InputError(
            f"{path}: tensor '{name}' of shape {list(shape)} {dtype.value}: expected {expected} bytes, found {end - begin}"
        )
    return _Entry(dtype, shape, begin, end)


def _check_layout(path: Path, entries: dict[str, _Entry], n_data: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor '{name}' {kind}: expected offset {position}, found {entry.begin}")
        position = entry.end
    if position != n_data:
        kind = "truncated" if n_data < position else "has trailing bytes"
        raise InputError(f"{path}: {kind}: expected {position} bytes of tensors, found {n_data}")
