"""Packages of any writer: told by their manifest; what they hold by the element types of their constants."""

from __future__ import annotations

from pathlib import Path

from ..target import Artifact
from .package import MANIFEST, SUFFIX

# What converters put into names of packages, and the class of it.
_QUANTS = (("int4", "q4"), ("4bit", "q4"), ("int8", "q8"), ("8bit", "q8"), ("fp16", "f16"), ("float16", "f16"))
_UNKNOWN = ("unknown", "q4")


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The packages of a folder, or the one at a path."""
    if not path.is_dir():
        return ()
    packages = [path] if _is_package(path) else sorted(filter(_is_package, path.glob(f"*{SUFFIX}")))
    return tuple(map(_artifact, packages))


def _is_package(path: Path) -> bool:
    return path.suffix == SUFFIX and (path / MANIFEST).is_file()


def _artifact(package: Path) -> Artifact:
    stem = package.stem.lower()
    quant, class_name = next(((word, found) for word, found in _QUANTS if word in stem), _UNKNOWN)
    files = tuple(sorted(file for file in package.rglob("*") if file.is_file()))
    return Artifact(
        package / MANIFEST, package.absolute().parent, "coreml", quant, class_name, files, is_recognised=True
    )
