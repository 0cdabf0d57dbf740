"""Changes to an input: to its bytes, and where it is text of JSON, TOML or a template, to its structure."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

_NUMBERS = (0, 1, -1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64 - 1, 2**64, 10**400)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x", "\x00", "\ud800", "../../x",
    "[x]", "a" * 4096, [], {}, [[]], {"": None}, [None], "lfm2_moe", "BF16",
)  # fmt: skip
_WORDS = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"=", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"1e999", b"-", b"\n",
    b"{{ ", b" }}", b"{% for x in range(99999) %}", b"{% endfor %}", b" | tojson", b"''.__class__", b" ** ", b" * ",
    b"loop", b"%s", b"namespace(", b"macro", b"'a'", b"9999999",
)  # fmt: skip


def mutate(data: bytes, generator: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes."""
    for _ in range(generator.randint(1, 4)):
        if generator.random() < 0.5:
            data = _structure(data, generator) or _bytes(data, generator, others)
        else:
            data = _bytes(data, generator, others)
    return data[: 1 << 20]


def _bytes(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    at = generator.randint(0, len(data))
    to = min(len(data), at + generator.choice((1, 1, 2, 4, 8, 16, 64, 1024)))
    kind = generator.randrange(8)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << generator.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[to:]
    if kind == 2:
        return data[:at] + data[at:to] * generator.choice((2, 3, 50)) + data[to:]
    if kind == 3:
        number = generator.choice(_NUMBERS) & (2**64 - 1)
        word = struct.pack("<Q", number)[: generator.choice((1, 2, 4, 8))]
        return data[:at] + word + data[at + len(word) :]
    if kind == 4:
        return data[:at] + generator.choice(_WORDS) + data[generator.choice((at, to)) :]
    if kind == 5 and others:
        other = generator.choice(others)
        cut = generator.randint(0, len(other))
        return data[:at] + other[cut : cut + 4096]
    if kind == 6:
        return data[:at]
    return data[:at] + generator.randbytes(to - at) + data[to:]


def _structure(data: bytes, generator: random.Random) -> bytes | None:
    """A change somewhere in the JSON that the bytes are, or that starts at their first brace; None if there is none."""
    start, end = data.find(b"{"), data.rfind(b"}") + 1
    if start < 0 or end <= start:
        return None
    try:
        value = json.loads(data[start:end])
        changed = json.dumps(_changed(value, generator)).encode()
    except (ValueError, RecursionError):
        return None
    head, tail = data[:start], data[end:]
    if len(head) == 8:  # a safetensors file declares its header's length
        head = struct.pack("<Q", len(changed))
    return head + changed + tail


def _changed(value: Any, generator: random.Random) -> Any:
    if isinstance(value, dict) and value:
        key = generator.choice(list(value))
        choice = generator.randrange(10)
        if choice == 0:
            return {k: v for k, v in value.items() if k != key}
        if choice == 1:
            return {**value, generator.choice(("x", "", key + " ", "\u0130")): value[key]}
        return {**value, key: _changed(value[key], generator)}
    if isinstance(value, list) and value:
        at, choice = generator.randrange(len(value)), generator.randrange(10)
        if choice == 0:
            return value[:at] + value[at + 1 :]
        if choice == 1:
            return value + [value[at]] * generator.choice((1, 2, 1000))
        return [*value[:at], _changed(value[at], generator), *value[at + 1 :]]
    return generator.choice(_VALUES)
