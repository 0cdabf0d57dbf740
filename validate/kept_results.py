"""Results as JSON that can be read back, so that an artifact is judged anew without being run anew.

What is kept follows from the types of the records' fields: a field that is added is kept without a line here.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..targets.target import Artifact
from .floor import Distance
from .results import ArtifactResult, Occasion, Report

# The artifact is where it is found; scores are of every position of every prompt, and what was judged by them is judged.
_NOT_KEPT: Mapping[type, tuple[str, ...]] = {ArtifactResult: ("artifact", "scores"), Distance: ("scores",)}


def to_record(report: Report) -> dict[str, Any]:
    """A report of one artifact. Numbers that are not finite stay what they are, as Python's JSON spells them."""
    (result,) = report.results
    return {
        "model": report.model,
        "environment": report.environment,
        "occasion": _plain(report.occasion),
        "result": _plain(result),
    }


def from_record(record: Any, artifact: Artifact) -> Report:
    """The report that was kept, of an artifact that lies where it lies now.

    Raises: ValueError, KeyError or TypeError for what is no such record.
    """
    result = replace(_restored(ArtifactResult, record["result"]), artifact=artifact)
    occasion = _restored(Occasion, record["occasion"])
    return Report(str(record["model"]), (result,), dict(record["environment"]), occasion)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        left_out = _NOT_KEPT.get(type(value), ())
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.name not in left_out}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _restored(kind: Any, data: Any) -> Any:
    """A value of a type from what `_plain` made of it; empty in place of what is not kept."""
    if isinstance(kind, type) and is_dataclass(kind):
        left_out = dict.fromkeys(_NOT_KEPT.get(kind, ()), ())
        kept = {name: _restored(hint, data[name]) for name, hint in _hints(kind).items() if name not in left_out}
        return kind(**left_out, **kept)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _of_union(arguments, data)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(_restored(each, item) for each, item in zip(arguments, data, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise TypeError(f"{data!r:.40} is no object")
        return {_key(arguments[0], key): _restored(arguments[1], item) for key, item in data.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(data, list):
            raise TypeError(f"{data!r:.40} is no list")
        return tuple(_restored(arguments[0], item) for item in data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    return _number_or_text(kind, data)


def _of_union(kinds: Sequence[Any], data: Any) -> Any:
    """A value of the first type that takes it."""
    if data is None and type(None) in kinds:
        return None
    for kind in kinds:
        try:
            return _restored(kind, data)
        except (ValueError, KeyError, TypeError):
            continue
    raise TypeError(f"{data!r:.40} is none of {kinds}")


def _key(kind: Any, text: str) -> Any:
    """A key of a mapping, which JSON has as text."""
    return int(text) if kind is int else _restored(kind, text)


def _number_or_text(kind: Any, data: Any) -> Any:
    # An integer in place of a float stays one: manifests spell the two differently.
    if kind is Any or type(data) is kind or (kind is float and type(data) is int):
        return data
    raise TypeError(f"{data!r:.40} is no {kind}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def without_scores(report: Report) -> Report:
    """The report as it is when it was kept and read back."""
    return report.with_results(
        replace(result, scores=(), floor=result.floor and replace(result.floor, scores=())) for result in report.results
    )
