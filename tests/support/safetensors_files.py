"""A small safetensors writer and reader of our own, so that tests can make any file, bf16 and hostile ones included.

Layout (source: the safetensors format specification): u64 header length, JSON header padded with
spaces to a multiple of 8, tensor bytes without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ITEMSIZE = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
    "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


class Tensor(NamedTuple):
    """A stored tensor: dtype as the header spells it, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Declared(NamedTuple):
    """A tensor to be written: `chunks` yields its bytes in pieces, when asked."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


def float32(values: Any) -> Tensor:
    """A tensor of float32 values."""
    array = np.asarray(values, "<f4")
    return Tensor("F32", array.shape, array.tobytes())


def bfloat16(values: Any) -> Tensor:
    """A tensor of the nearest bfloat16 values, ties to even."""
    array = np.asarray(values, np.float32)
    return Tensor("BF16", array.shape, bfloat16_bytes(array))


def bfloat16_bytes(values: np.ndarray) -> bytes:
    """Bytes of the nearest bfloat16 values of a finite float32 array, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def with_header(header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of a header as given (dict or raw bytes), declaring `length` or the header's real length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_declared(path: Path, tensors: Mapping[str, Declared]) -> None:
    """Streams tensors into a file; widest dtype first, then by name, as the safetensors library orders them."""
    ordered = sorted(tensors.items(), key=lambda item: (-ITEMSIZE[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(with_header(text + b" " * (-len(text) % 8)))
        for _, tensor in ordered:
            file.writelines(tensor.chunks())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors held in memory."""

    def declared(tensor: Tensor) -> Declared:
        return Declared(tensor.dtype, tensor.shape, lambda: [tensor.data])

    write_declared(path, {name: declared(tensor) for name, tensor in tensors.items()})
    return path


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a well-formed file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), raw[slice(*(start + o for o in entry["data_offsets"]))])
        for name, entry in header.items()
    }


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Rewrites a file after `change` edited its tensors in place."""
    tensors = read_tensors(path)
    change(tensors)
    return write_tensors(path, tensors)
