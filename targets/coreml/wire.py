"""Protocol buffers as bytes: the few forms of a field that Core ML's specification uses.

Importing coremltools takes half a gigabyte of memory where torch is installed, and a plan is to need no package at all;
a specification is a few hundred kilobytes of nested records. What reads it back, has Apple's own schema.
Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_VARINT, _BYTES = 0, 2


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as its 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field of an integer, a bool or an enumeration; nothing for zero, which is what a missing one means."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def record(field: int, data: bytes) -> bytes:
    """A field of bytes, or of a nested message."""
    return varint(field << 3 | _BYTES) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    return record(field, value.encode())


def packed(field: int, values: Iterable[int]) -> bytes:
    """A field of several integers."""
    return record(field, b"".join(map(varint, values)))


def entries(field: int, values: Mapping[str, bytes]) -> bytes:
    """A map from texts to messages, in the order of its keys."""
    return b"".join(record(field, text(1, key) + record(2, value)) for key, value in values.items())
