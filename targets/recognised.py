"""What recognising an artifact without a manifest shares among the targets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ..graph.config import CONFIG_FILE
from ..graph.errors import InputError
from ..graph.files import is_file
from ..graph.source.checkpoint import INDEX_FILE, Checkpoint
from .target import Artifact

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


def model_folders(path: Path) -> list[Path]:
    """The folders that a path may mean, of a format whose models are folders with a config: it, those in it, or the one
    whose config or weights are named.
    """
    if path.is_dir():
        inner = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
        return [path] if (path / CONFIG_FILE).is_file() else inner
    is_part = path.name in (CONFIG_FILE, INDEX_FILE) or path.suffix == ".safetensors"
    return [path.parent] if is_part else []


def folder_artifact(folder: Path, *, target: str, quant: str, class_name: str, beside: Collection[str]) -> Artifact:
    """What such a folder is; of the files beside its weights those with these suffixes are its own."""
    weights = [file.path for file in Checkpoint(folder).files]
    others = [file for file in folder.iterdir() if file.is_file() and file.suffix in beside]
    return Artifact(
        path=folder / CONFIG_FILE,
        folder=folder,
        target=target,
        quant=quant,
        class_name=class_name,
        files=tuple(sorted({*weights, *others})),
        is_recognised=True,
    )


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
