"""Reads the header of a GGUF file that may be damaged or hostile.

Nothing is allocated by a length before it is known to lie inside the file, and the tensors must fill the
data area exactly: in order, aligned, without overlap, gap or trailing bytes.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ..encoding import get_encoding, ggml_types
from .header import ALIGNMENT, MAGIC, SCALARS, VERSION, TensorInfo, ValueType, aligned

# Types of other people's files, which can be listed but not decoded: id -> name, elements of a block, its bytes.
# Source: ggml `include/ggml.h`, `src/ggml.c`, `type_traits`.
_FOREIGN = {
    9: ("Q8_1", 32, 36), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 40: ("NVFP4", 64, 36),
}  # fmt: skip
_FOREIGN_SIZES = {name: (block, n_bytes) for name, block, n_bytes in _FOREIGN.values()}
_MAX_NAME = 63  # bytes of a tensor's name, as ggml allows
_MAX_AXES = 4


@dataclass(frozen=True)
class GgufFile:
    """A file's metadata and tensors. Units: `data_offset` bytes."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int


def read_gguf(path: Path) -> GgufFile:
    """Reads the header and checks that the file holds what it declares.

    Raises: InputError naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file
        raise InputError(f"{path}: cannot be read as GGUF: {error}") from None


def is_gguf(path: Path) -> bool:
    """Whether a file starts as one, or is called so."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(path, data)
    if cursor.take(4) != MAGIC:
        raise cursor.fault("does not start with 'GGUF'")
    version = cursor.scalar(ValueType.UINT32)
    if version != VERSION:
        raise cursor.fault(f"is GGUF version {version}: expected {VERSION}")
    n_tensors, n_pairs = cursor.count(least=24), cursor.count(least=13)
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.text()
        if key in metadata:
            raise cursor.fault(f"gives '{key}' twice")
        metadata[key] = cursor.value()
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fault(f"has alignment {alignment!r}: expected a power of two")
    tensors = tuple(_tensor(cursor) for _ in range(n_tensors))
    found = GgufFile(path, metadata, tensors, aligned(cursor.position, alignment))
    _check_layout(cursor, found, alignment)
    return found


class _Cursor:
    """Reads forward through a file, never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data = path, data
        self.position = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def fault(self, what: str) -> InputError:
        return InputError(f"{self._path}: {what}")

    def take(self, n_bytes: int) -> bytes:
        end = self.position + n_bytes
        if end > self.size:
            raise self.fault(f"is truncated: {n_bytes} bytes expected at {self.position}, the file has {self.size}")
        found = self._data[self.position : end]
        self.position = end
        return found

    def scalar(self, kind: ValueType) -> Any:
        form = SCALARS[kind]
        return form.unpack(self.take(form.size))[0]

    def count(self, *, least: int) -> int:
        """A number of items of at least that many bytes each, which must fit the rest of the file."""
        n = int(self.scalar(ValueType.UINT64))
        if n * least > self.size - self.position:
            raise self.fault(
                f"is truncated: {n} items are declared at {self.position - 8}, the file has {self.size} bytes"
            )
        return n

    def text(self) -> str:
        try:
            return self.take(self.count(least=1)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fault(f"holds text that is not UTF-8 before {self.position}") from None

    def value(self) -> Any:
        kind = self.kind()
        if kind is not ValueType.ARRAY:
            return self._item(kind)
        kind = self.kind()
        if kind is ValueType.ARRAY:
            raise self.fault("holds an array of arrays, which no file of a model has")
        if kind is ValueType.STRING:
            return [self.text() for _ in range(self.count(least=8))]
        form = SCALARS[kind]
        n = self.count(least=form.size)
        return [item for (item,) in form.iter_unpack(self.take(n * form.size))]

    def kind(self) -> ValueType:
        number = self.scalar(ValueType.UINT32)
        try:
            return ValueType(number)
        except ValueError:
            raise self.fault(f"holds a value of unknown type {number}") from None

    def _item(self, kind: ValueType) -> Any:
        return self.text() if kind is ValueType.STRING else self.scalar(kind)


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.text()
    n_axes = cursor.scalar(ValueType.UINT32)
    if len(name.encode()) > _MAX_NAME or not 1 <= n_axes <= _MAX_AXES:
        raise cursor.fault(f"declares a tensor of {n_axes} axes named '{name[:_MAX_NAME]}'")
    shape = struct.unpack(f"<{n_axes}Q", cursor.take(8 * n_axes))[::-1]
    type_id = cursor.scalar(ValueType.UINT32)
    encoding = _encodings().get(type_id)
    if encoding is None:
        known = ", ".join(ggml_types())
        raise cursor.fault(f"stores tensor '{name}' as ggml type {type_id}, which is not one of {known}")
    return TensorInfo(name, shape, encoding, cursor.scalar(ValueType.UINT64))


@cache
def _encodings() -> dict[int, str]:
    """Names of types by number, those that cannot be decoded among them."""
    known = {number: name for name, number in ggml_types().items()}
    return {number: name for number, (name, *_) in _FOREIGN.items()} | known


def _check_layout(cursor: _Cursor, found: GgufFile, alignment: int) -> None:
    end = found.data_offset
    names = set()
    for tensor in found.tensors:
        if tensor.name in names:
            raise cursor.fault(f"holds tensor '{tensor.name}' twice")
        names.add(tensor.name)
        start = found.data_offset + tensor.offset
        if start != end:
            raise cursor.fault(
                f"places tensor '{tensor.name}' at {start}: expected {end}, where the one before it ends"
            )
        end = start + aligned(_nbytes(cursor, tensor), alignment)
        if end > cursor.size:
            raise cursor.fault(f"is truncated: tensor '{tensor.name}' ends at {end}, the file has {cursor.size} bytes")
    if end != cursor.size:
        raise cursor.fault(f"has {cursor.size - end} bytes after its last tensor")


def _nbytes(cursor: _Cursor, tensor: TensorInfo) -> int:
    if 0 in tensor.shape:
        raise cursor.fault(f"declares tensor '{tensor.name}' of shape {list(tensor.shape)}")
    block, _ = _block(tensor.encoding)
    if tensor.shape[-1] % block:
        raise cursor.fault(
            f"stores tensor '{tensor.name}' as {tensor.encoding}: "
            f"rows of {tensor.shape[-1]} are not a multiple of the block of {block}"
        )
    return tensor_nbytes(tensor)


def tensor_nbytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor, padding excluded. Python's integers do not overflow, so a product of huge axes is exact."""
    block, block_bytes = _block(tensor.encoding)
    return math.prod(tensor.shape[:-1]) * (tensor.shape[-1] // block) * block_bytes


def _block(encoding: str) -> tuple[int, int]:
    """Elements and bytes of a block."""
    if encoding in _FOREIGN_SIZES:
        return _FOREIGN_SIZES[encoding]
    known = get_encoding(encoding)
    return known.block, known.row_nbytes(known.block)
