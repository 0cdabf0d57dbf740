"""Programs of any writer, such as `export_llm`: told by their header; what they hold is told by their name, if at all."""

from __future__ import annotations

import re
from pathlib import Path

from ..recognised import own_file
from ..target import Artifact
from .layout import DATA_SUFFIX

_SUFFIX, _MAGIC = ".pte", b"ET12"  # after four bytes of flatbuffers
# What exporters put into names of files, the first that is found, and the class of it.
_QUANTS = (
    (re.compile(r"8da4w|int4|4w|q4", re.IGNORECASE), "8da4w", "q4"),
    (re.compile(r"8da8w|int8|8w|q8", re.IGNORECASE), "8da8w", "q8"),
    (re.compile(r"fp32|float32|f32", re.IGNORECASE), "fp32", "f32"),
    (re.compile(r"bf16|fp16|f16", re.IGNORECASE), "fp16", "f16"),
)
_UNKNOWN = ("unknown", "q4")  # a delegate's weights are its own: the class whose arithmetic may round most


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The programs of a folder, or the one of a file."""
    if path.is_dir():
        return tuple(_artifact(file) for file in sorted(path.glob(f"*{_SUFFIX}")) if _is_program(file))
    return (_artifact(path),) if path.suffix == _SUFFIX or _is_program(path) else ()


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8)[4:] == _MAGIC


def _artifact(path: Path) -> Artifact:
    """With the data of a name alike, if it lies beside."""
    quant, class_name = next(
        ((quant, class_name) for pattern, quant, class_name in _QUANTS if pattern.search(path.stem)), _UNKNOWN
    )
    data = path.with_suffix(DATA_SUFFIX)
    files = (path, own_file(path, data.name)) if data.is_file() else (path,)
    return Artifact(path, path.parent, "executorch", quant, class_name, files, is_recognised=True)
