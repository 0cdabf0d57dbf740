"""Reads safetensors files: header checked in full before any byte of a tensor is used.

Layout (source: the safetensors format specification):
    bytes 0..8     header length n, little-endian u64
    bytes 8..8+n   JSON object: name -> {dtype, shape, data_offsets: [begin, end)}, `__metadata__`
    the rest       tensor bytes, without holes or overlap, offsets relative to its start
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import WEIGHT_DTYPES, DType, Float32, element_type, first_not_finite, stored, widen
from ..errors import InputError
from ..json_text import parse_json
from ..tensor import Shape, TensorView
from .open_file import OpenFile

# The largest of the family (64 experts, 40 layers) needs 1 MB; the format allows 100 MB.
_MAX_HEADER_BYTES = 16 << 20
_MAX_AXES = 8
# Bytes read and widened while they are in a cache; each piece costs the interpreter 80 µs. As many as writers ask for of
# two-byte elements, so that what one thread reads is hashed in one go.
_AT_ONCE = 2 << 20
_own = threading.local()
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class _Entry:
    dtype: DType
    shape: Shape
    begin: int
    end: int


class SafetensorsFile(OpenFile):
    """One open file; `tensors` lists its handles by name.

    Raises: InputError, naming the file, for anything the specification forbids.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with path.open("rb") as file:
                data_start, entries = _read_header(path, file.read(min(self.size, 8)), file, self.size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        self.tensors = {name: StoredTensor(self, name, entry, data_start) for name, entry in entries.items()}


def header_bytes(entries: Mapping[str, object]) -> bytes:
    """A file up to its tensors' bytes, which begin at a multiple of eight."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in its place until it is fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


class StoredTensor(TensorView):
    """A tensor of a safetensors file. `offset` is that of its bytes from the file's start.

    `stored_name` is what the file calls it, and what faults of its values are told by.
    """

    def __init__(self, file: SafetensorsFile, name: str, entry: _Entry, data_start: int) -> None:
        super().__init__(name, entry.dtype, entry.shape)
        self.file = file
        self.path = file.path
        self.stored_name = name
        self.offset = data_start + entry.begin

    def elements(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of the flat tensor as they are stored, whatever their type; see `element_type`."""
        found = np.empty(stop - start, element_type(self.dtype))
        if found.size:
            self.file.read_into(found.view(np.uint8).data, self.offset + start * self.dtype.itemsize)
        return found

    def place(self, row: int) -> tuple[str, int]:
        return str(self.path), self.offset + row * self.row_nbytes

    def _rows(self, start: int, stop: int) -> Float32:
        if self.dtype not in WEIGHT_DTYPES:
            raise InputError(
                f"{self.file.path}: tensor '{self.stored_name}' is {self.dtype.value}: expected F32, F16 or BF16"
            )
        values = np.empty((stop - start, self.n_cols), np.float32)
        flat, first = values.reshape(-1), start * self.n_cols
        n_at_once = _AT_ONCE // self.dtype.itemsize
        for at in range(0, flat.size, n_at_once):
            piece = flat[at : at + n_at_once]
            raw = _scratch(piece.size * self.dtype.itemsize)
            self.file.read_into(raw, self.offset + (first + at) * self.dtype.itemsize)
            bits = stored(raw, self.dtype)
            self._refuse_not_finite(bits, first + at)
            widen(bits, self.dtype, out=piece)
        return values

    def _refuse_not_finite(self, bits: NDArray[np.unsignedinteger[Any]], first: int) -> None:
        """`first` is the flat index of the first of these elements."""
        bad = first_not_finite(bits, self.dtype)
        if bad is None:
            return
        index = ", ".join(str(int(i)) for i in np.unravel_index(first + bad, self.shape))
        value = float(widen(bits[bad : bad + 1], self.dtype)[0])
        raise InputError(
            f"{self.file.path}: tensor '{self.stored_name}' holds {value} at [{index}]: expected finite weights"
        )


def _scratch(n_bytes: int) -> memoryview:
    """Bytes that belong to the thread until it asks again: new memory for every piece would cost more than reading it."""
    if not hasattr(_own, "buffer"):
        _own.buffer = bytearray(_AT_ONCE)
    return memoryview(_own.buffer)[:n_bytes]


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
        raw = parse_json(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: header is not valid JSON: {error}") from None
    metadata = raw.pop("__metadata__", None)
    if metadata is None:  # also as MLX writes it where it is given none
        metadata = {}
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
    bits = math.prod(shape) * dtype.bits
    if bits % 8:
        raise InputError(f"{path}: tensor '{name}' of shape {list(shape)} {dtype.value} does not end on a whole byte")
    expected = bits // 8
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
