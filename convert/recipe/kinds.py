"""What the values of a recipe's keys may be: how each kind is read, said, and written as JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.adapters.adapter import MERGE_DTYPES
from ...graph.units import parse_size
from ...quantize.allotment.wanted import TUNED as TUNED_PARTS
from ...targets.target import target_names
from ...validate.lines import parse_fraction
from ...validate.suites import SUITES


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`read` turns a value of TOML into the one that is used: it raises ValueError for one of another kind, or an error
    of ours that says more. `words` are what is expected.
    """

    words: str
    schema: Mapping[str, Any]
    read: Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:  # which no name of a file can hold
        raise ValueError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(map(_text, value))


def _one_of(names: tuple[str, ...], words: str) -> Kind:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Kind(words=words, schema={"enum": list(names)}, read=read)


def _some_of(names: tuple[str, ...], words: str) -> Kind:
    """Which names there are is told by who knows what else is wrong with one."""
    schema = {"type": "array", "items": {"enum": list(names)}, "minItems": 1}
    return Kind(words=words, schema=schema, read=_texts)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _whole(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or value < least:
            raise ValueError
        return value

    return read


def _size(value: Any) -> int:
    """An integer is bytes; a text has a unit. Raises: UsageError for a text that is none."""
    return parse_size(value) if isinstance(value, str) else _whole(0)(value)


def _number(value: Any, *, least: float = 0.0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    found = float(value) if abs(value) <= _LARGEST else math.inf
    if not (least <= found <= most and math.isfinite(found)):  # a comparison with NaN is false
        raise ValueError
    return found


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(_number(each, least=-math.inf) for each in value)


def _fraction(value: Any) -> float:
    """Raises: UsageError for a text that is none."""
    return _number(parse_fraction(value) if isinstance(value, str) else value, most=1.0)


_LARGEST = 1e300
_WRITTEN = {"type": "string", "minLength": 1}
_LIST = {"type": "array", "items": _WRITTEN, "minItems": 1}

TEXT = Kind(words="a text that is not empty", schema=_WRITTEN, read=_text)
NAMES = Kind(words="a list of names", schema=_LIST, read=_texts)
FILE = Kind(words="the path of a file", schema=_WRITTEN, read=lambda value: Path(_text(value)))
FILES = Kind(
    words="a list of paths of files", schema=_LIST, read=lambda value: tuple(Path(text) for text in _texts(value))
)
PLACE = Kind(words="the path of a folder, or a URL", schema=_WRITTEN, read=_text)
FOLDER = Kind(words="the path of a folder", schema=_WRITTEN, read=lambda value: Path(_text(value)))
FOLDERS = Kind(
    words="a list of paths of folders", schema=_LIST, read=lambda value: tuple(Path(text) for text in _texts(value))
)
NUMBERS = Kind(
    words="a list of numbers",
    schema={"type": "array", "items": {"type": "number"}, "minItems": 1},
    read=_numbers,
)
MERGE_DTYPE = _one_of(tuple(MERGE_DTYPES), " or ".join(MERGE_DTYPES))
TARGET = Kind(words="the name of a target", schema={"enum": list(target_names())}, read=_text)
TARGETS = _some_of(target_names(), "a list of names of targets")
TUNED = _some_of(TUNED_PARTS, f"a list of {' and '.join(TUNED_PARTS)}")
SUITE = _one_of(SUITES, " or ".join(SUITES))
FLAG = Kind(words="true or false", schema={"type": "boolean"}, read=_flag)


def at_least(least: int) -> Kind:
    return Kind(words=f"a number, {least} or more", schema={"type": "integer", "minimum": least}, read=_whole(least))


COUNT = at_least(1)
SIZE = Kind(
    words="a size like 4.8GB, or a number of bytes, 0 or more",
    schema={
        "oneOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]\s*$"},
        ]
    },
    read=_size,
)
SECONDS = Kind(
    words="a number of seconds, 1 or more",
    schema={"type": "number", "minimum": 1},
    read=lambda value: _number(value, least=1.0),
)
NATS = Kind(words="a number of nats, 0 or more", schema={"type": "number", "minimum": 0}, read=_number)
FRACTION = Kind(
    words="a fraction like 0.9, or 90%",
    schema={
        "oneOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%?\s*$"},
        ]
    },
    read=_fraction,
)
