"""Packages of any writer: told by their manifest, what they are stored as by their metadata or their constants.

Those of a model that was split are told by their names and by what their metadata say, as parts of GGUF files are.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...graph.errors import BackendError, InputError
from ...quantize.policies.coreml import POLICIES
from ..naming import part_name, read_part_name
from ..recognised import coarsest, most_common
from ..target import Artifact
from .evaluator.package import MANIFEST, Package, open_package, shown
from .interface import CONTEXT_KEY, PART_KEY, QUANT_KEY
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
    return tuple(map(_artifact, dict.fromkeys(map(_parts, packages))))


def packages_of(artifact: Artifact) -> list[Path]:
    """The packages of an artifact in the order in which they are run, which is that of their names."""
    return sorted(file.parent for file in artifact.files if file.name == MANIFEST)


def context_of(package: Path) -> int | None:
    """For how many positions a package has room; None if it does not say."""
    said = _said(package, CONTEXT_KEY) or ""
    return int(said) if said.isdecimal() and int(said) else None


def _parts(package: Path) -> tuple[Path, ...]:
    """Every package of the model that this is a part of.

    Raises: InputError for a part whose name does not say which, or one of those beside it that is missing.
    """
    name = read_part_name(package.name, SUFFIX)
    said = _said(package, PART_KEY)
    is_part = name is not None and said in (None, f"{name.number} of {name.count}")
    if said and not is_part:
        raise InputError(f"{package}: says that it is part {shown(said)}, which its name does not")
    if name is None or not said:
        return (package,)
    paths = [package.with_name(part_name(name.stem, i, name.count, SUFFIX)) for i in range(1, name.count + 1)]
    for path in paths:
        if not _is_package(path):
            raise InputError(f"{package}: is not whole: '{path.name}' is missing")
    return tuple(paths)


def _said(package: Path, key: str) -> str | None:
    """What a package's metadata say; None where nothing is said, or nobody can read it."""
    try:
        return _metadata(open_package(package)).get(key)
    except BackendError:
        return None


def _metadata(package: Package) -> dict[str, str]:
    return dict(package.spec.description.metadata.userDefined)


def _is_package(path: Path) -> bool:
    return path.suffix == SUFFIX and (path / MANIFEST).is_file()


def _artifact(packages: tuple[Path, ...]) -> Artifact:
    first = packages[0]
    quant, class_name = _stored_as(packages)
    files = tuple(sorted(file for package in packages for file in package.rglob("*") if file.is_file()))
    return Artifact(first / MANIFEST, first.parent, "coreml", quant, class_name, files, is_recognised=True)


def _stored_as(packages: tuple[Path, ...]) -> tuple[str, str]:
    """Quant and quality class: those that a package of ours names, else what most and the coarsest constants are."""
    try:
        opened = [open_package(package) for package in packages]
    except BackendError:  # it is found all the same, and whoever runs it says what is missing
        return _UNKNOWN
    said = _metadata(opened[0]).get(QUANT_KEY)
    ours = {policy.name: policy.class_name for policy in POLICIES}
    if said in ours:
        return said, ours[said]
    sizes: dict[str, int] = {}
    for tensor in (each for package in opened for each in listed_constants(package)):
        bits = _INTEGERS.search(tensor.encoding)
        name = f"q{bits[1]}" if bits else _FLOATS.get(tensor.encoding, "")
        sizes[name] = sizes.get(name, 0) + tensor.nbytes
    sizes.pop("", None)
    found = most_common(sizes)
    return (found, coarsest(sizes)) if found else _UNKNOWN
