"""The GGUF header: what it holds, and its bytes.

| bytes | type | meaning |
|---|---|---|
| 0-3 | char[4] | `GGUF` |
| 4-7 | uint32 | version, 3 |
| 8-15 | uint64 | number of tensors |
| 16-23 | uint64 | number of key-value pairs |
| … | | pairs: key (string), value type (uint32), value |
| … | | tensors: name (string), number of axes (uint32), axes (uint64 each, fastest first), type (uint32), offset (uint64, from the start of the data) |
| … | | zeros to a multiple of 32, where the data starts |

All little-endian. A string is its length (uint64) and UTF-8 bytes; an array is its item type (uint32),
length (uint64) and items. Each tensor starts at a multiple of 32.
Source: ggml `docs/gguf.md`, `src/gguf.cpp`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...graph.errors import InputError
from ..encoding import ggml_types

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32


class ValueType(enum.IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# How scalars are packed.
SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


@dataclass(frozen=True)
class KeyValue:
    """One metadata pair. Of an array, `type` is ARRAY and `item` the type of its items."""

    key: str
    type: ValueType
    value: Any
    item: ValueType | None = None


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header tells it. Shapes: outermost axis first. Units: `offset` bytes into the data."""

    name: str
    shape: tuple[int, ...]
    encoding: str
    offset: int


def uint32(key: str, value: int) -> KeyValue:
    return KeyValue(key, ValueType.UINT32, value)


def float32(key: str, value: float) -> KeyValue:
    return KeyValue(key, ValueType.FLOAT32, value)


def boolean(key: str, value: bool) -> KeyValue:
    return KeyValue(key, ValueType.BOOL, value)


def string(key: str, value: str) -> KeyValue:
    return KeyValue(key, ValueType.STRING, value)


def strings(key: str, values: Sequence[str]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, list(values), ValueType.STRING)


def int32s(key: str, values: Sequence[int]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, list(values), ValueType.INT32)


def float32s(key: str, values: Sequence[float]) -> KeyValue:
    return KeyValue(key, ValueType.ARRAY, list(values), ValueType.FLOAT32)


def aligned(n_bytes: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of the alignment; ours is always 32, other people's files may say otherwise."""
    return -(-n_bytes // alignment) * alignment


def header_bytes(pairs: Sequence[KeyValue], tensors: Sequence[TensorInfo]) -> bytes:
    """The header, padded up to where the data starts.

    Raises: InputError for a number or text that GGUF has no room for.
    """
    out = bytearray(MAGIC)
    out += struct.pack("<IQQ", VERSION, len(tensors), len(pairs))
    for pair in pairs:
        out += _string(pair.key) + struct.pack("<I", pair.type) + _value(pair)
    for tensor in tensors:
        out += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        out += struct.pack("<IQ", ggml_types()[tensor.encoding], tensor.offset)
    return bytes(out).ljust(aligned(len(out)), b"\0")


def _value(pair: KeyValue) -> bytes:
    try:
        if pair.item is None:
            return _item(pair.type, pair.value)
        head = struct.pack("<IQ", pair.item, len(pair.value))
        return head + b"".join(_item(pair.item, value) for value in pair.value)
    except (struct.error, OverflowError):
        raise InputError(f"GGUF cannot store '{pair.key}': {pair.value} does not fit its type") from None


def _item(kind: ValueType, value: Any) -> bytes:
    return _string(value) if kind is ValueType.STRING else SCALARS[kind].pack(value)


def _string(text: str) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"GGUF cannot store the text {text[:80]!r}: it is not valid Unicode") from None
    return struct.pack("<Q", len(data)) + data
