"""Files on their way between a store and who works for a release elsewhere: each is held to its sha256 on both ends.

OUT/.lfm-release/cluster/parts/RUN/N/…       what step N of a run made, until it is in its place
OUT/.lfm-release/cluster/inputs/RUN/…        files of the client that steps read
OUT/.lfm-release/cluster/references/KEY/…    the checkpoint's own run, for this run and later ones
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...graph.errors import NetworkError
from ...graph.source.urls import Remote, told

CLUSTER = "cluster"
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a step made elsewhere: files below `place` with their sha256 by path, and findings as JSON."""

    place: Remote
    files: Mapping[str, str] = field(default_factory=dict)
    findings: Any = None
    seconds: float = 0.0


def push(path: Path, place: Remote) -> str:
    """Sends a file and reads it back; its sha256. Raises: NetworkError if the store has other bytes, or fails."""
    with path.open("rb") as file:
        sha256 = _sha256(iter(lambda: file.read(_PIECE), b""))
    with told(place.url):
        _written(place, path)
    if hash_remote(place) != sha256:
        raise NetworkError(f"{place.url}: the store holds other bytes than were sent")
    return sha256


def _written(place: Remote, path: Path) -> None:
    try:
        place.fs.put_file(str(path), place.path)
    except FileNotFoundError:  # a store that has folders
        place.fs.makedirs(place.path.rpartition("/")[0], exist_ok=True)
        place.fs.put_file(str(path), place.path)


def pull(place: Remote, path: Path, sha256: str) -> None:
    """Brings a file, which must have this sha256. Raises: NetworkError for one that has another; InputError for none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.here is not None:
        with suppress(OSError):  # on another device, or of somebody else
            os.link(place.here, path)
    with told(place.url):
        if not path.exists():
            with place.fs.open(place.path, "rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, _PIECE)
    with path.open("rb") as file:
        found = _sha256(iter(lambda: file.read(_PIECE), b""))
    if found != sha256:
        raise NetworkError(f"{place.url}: has sha256 {found[:12]}…: expected {sha256[:12]}…")


def move(place: Remote, target: Remote) -> None:
    """Moves a file inside a store, where it appears whole. Raises: NetworkError, InputError."""
    with told(place.url):
        n_bytes = place.fs.info(place.path)["size"]
        place.fs.cp_file(place.path, target.path)
        if target.fs.info(target.path)["size"] != n_bytes:
            raise NetworkError(f"{target.url}: the store has not copied all of {place.url}")
        place.fs.rm_file(place.path)


def hash_remote(place: Remote) -> str:
    """sha256 of a file in a store, read once. Raises: NetworkError, InputError."""
    with told(place.url), place.fs.open(place.path, "rb") as file:
        return _sha256(iter(lambda: file.read(_PIECE), b""))


def push_all(paths: Sequence[Path], *, root: Path, place: Remote) -> dict[str, str]:
    """Sends files to the same relative path below a place; their sha256 by it."""
    names = [path.relative_to(root).as_posix() for path in paths]
    return {name: push(path, place / name) for name, path in zip(names, paths, strict=True)}


def _sha256(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
