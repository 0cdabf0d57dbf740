"""What recognising an artifact without a manifest shares among the targets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..graph.errors import InputError
from ..graph.files import is_file

# Quality classes, the coarsest first; fewer bits than three are told as three.
_CLASSES = ("q3", "q4", "q5", "q6", "q8", "f16", "f32")
_BITS = re.compile(r"q(\d+)")


def coarsest(classes: Iterable[str]) -> str:
    """The class that loses most; `f32` of none."""
    return min(map(_known, classes), key=_CLASSES.index, default=_CLASSES[-1])


def _known(name: str) -> str:
    found = _BITS.fullmatch(name)
    if found is None:
        return name
    bits = [int(known[1:]) for known in _CLASSES if known.startswith("q")]
    return f"q{max((b for b in bits if b <= int(found[1])), default=min(bits))}"


def most_common(sizes: Mapping[str, int]) -> str | None:
    """What most of the elements are stored as; None of nothing."""
    return max(sizes, key=lambda name: (sizes[name], name), default=None)


def own_file(path: Path, name: str) -> Path:
    """A file that another names as lying beside it.

    Raises: InputError if the name leads out of the folder, or nothing lies there.
    """
    found = path.parent / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{path}: reads '{name}', which lies outside its folder")
    if not is_file(found):
        raise InputError(f"{path}: is not whole: '{name}' is missing")
    return found
