"""Packages of any writer: told by their manifest, what they are stored as by their metadata or their constants."""

from __future__ import annotations

import re
from pathlib import Path

from ...graph.errors import BackendError
from ...quantize.policies.coreml import POLICIES
from ..recognised import coarsest, most_common
from ..target import Artifact
from .evaluator.package import MANIFEST, open_package
from .interface import QUANT_KEY
from .package import SUFFIX
from .reader import listed_constants

_INTEGERS = re.compile(r"u?int(\d+)")
_FLOATS = {"fp16": "f16", "fp32": "f32"}
# What nothing tells.
_UNKNOWN = ("unknown", "q4")


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The packages of a folder, or the one at a path.

    Raises: InputError for one that is damaged.
    """
    if not path.is_dir():
        return ()
    packages = [path] if _is_package(path) else sorted(filter(_is_package, path.glob(f"*{SUFFIX}")))
    return tuple(map(_artifact, packages))


def _is_package(path: Path) -> bool:
    return path.suffix == SUFFIX and (path / MANIFEST).is_file()


def _artifact(package: Path) -> Artifact:
    quant, class_name = _stored_as(package)
    files = tuple(sorted(file for file in package.rglob("*") if file.is_file()))
    return Artifact(package / MANIFEST, package.parent, "coreml", quant, class_name, files, is_recognised=True)


def _stored_as(package: Path) -> tuple[str, str]:
    """Quant and quality class: those that a package of ours names, else what most and the coarsest constants are."""
    try:
        opened = open_package(package)
    except BackendError:  # it is found all the same, and whoever runs it says what is missing
        return _UNKNOWN
    said = opened.spec.description.metadata.userDefined.get(QUANT_KEY)
    ours = {policy.name: policy.class_name for policy in POLICIES}
    if said in ours:
        return said, ours[said]
    sizes: dict[str, int] = {}
    for tensor in listed_constants(opened):
        bits = _INTEGERS.search(tensor.encoding)
        name = f"q{bits[1]}" if bits else _FLOATS.get(tensor.encoding, "")
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    sizes.pop("", None)
    found = most_common(sizes)
    return (found, coarsest(sizes)) if found else _UNKNOWN
