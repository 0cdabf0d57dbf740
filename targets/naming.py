"""The name of a file or folder that is made of a model's name, which may hold anything, and those of its parts."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.graph import WeightGraph

# What a file system, a shell's pattern (MLX looks for its shards by one) or UTF-8 does not take in a name.
_UNFIT = re.compile(r'[\s/\\:*?"<>|\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_MAX_BYTES = 200  # file systems take 255, of which the shard's number and a temporary's ending need some


def fit_name(name: str, ending: str) -> str:
    """The name with hyphens for what does not fit, cut to a length that leaves room, then the ending as it is."""
    coding = sys.getfilesystemencoding()  # ASCII in the C locale: what it lacks becomes a question mark, and so unfit
    fit = _UNFIT.sub("-", name.strip().encode(coding, "replace").decode(coding)).lstrip(".-") or "model"
    return fit.encode()[: _MAX_BYTES - len(ending)].decode(errors="ignore") + ending


def artifact_name(graph: WeightGraph, ending: str) -> str:
    """The name of a model's artifact: the model's, whether its codes are tuned, then the ending as it is."""
    return fit_name(graph.name, tuned_mark(graph) + ending)


def tuned_mark(graph: WeightGraph) -> str:
    """What names say of a model whose codes are tuned."""
    return "-tuned" if graph.tuned else ""


@dataclass(frozen=True)
class PartName:
    """`NAME-00002-of-00003.gguf`: the name of all, and which part it is, from 1, of how many."""

    stem: str
    number: int
    count: int


def filled(sizes: Sequence[int], *, max_bytes: int | None) -> list[slice]:
    """Which items of these sizes each file holds, one filled after the other; one that is too large has its own.

    Units: bytes.
    """
    starts, total = [0], 0
    for index, size in enumerate(sizes):
        if max_bytes is not None and index > starts[-1] and total + size > max_bytes:
            starts.append(index)
            total = 0
        total += size
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def part_name(stem: str, number: int, count: int, suffix: str) -> str:
    """The name of a part, from 1, as llama.cpp looks for it; of the only one the name of all."""
    return stem + (f"-{number:05}-of-{count:05}" if count > 1 else "") + suffix


def read_part_name(name: str, suffix: str) -> PartName | None:
    """What the name of a part says; None if it is no part's."""
    found = _PART.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
    return None if found is None else PartName(found["stem"], int(found["number"]), int(found["count"]))
