"""What a release remembers for its next run: a cache, by which work is left out that was done, and nothing else.

It is one small file, replaced in one step and sealed by its own hash: a file that is gone, cut short or changed is as
none, and the work is done again. It says which key an artifact was made by, what a file's sha256 was when it had a size
and a time, and how long a step took. That an artifact is whole is for its manifest to say.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...graph.files import hash_files, replace_text
from ...graph.progress import SILENT, Progress

_SEAL, _CONTENT = "sha256", "content"


def content_key(*facts: Any) -> str:
    """sha256 of facts that JSON can tell."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: Any) -> None:
    """A value as JSON with its own hash, whole or not at all. Raises: DiskError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({_SEAL: content_key(content), _CONTENT: content}))


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote; None for a file that is not there or not as it was written."""
    try:
        found = json.loads(path.read_bytes())
        return found[_CONTENT] if found[_SEAL] == content_key(found[_CONTENT]) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


class State:
    """`made`: the key of what lies at a place; `seconds`: how long each step took, by its name.

    Files below a `passing` folder are not noted: it goes at the end of the run.
    """

    def __init__(self, path: Path, *, passing: Path | None = None) -> None:
        self._path = path
        self._passing = None if passing is None else os.path.realpath(passing) + os.sep
        found = read_sealed(path)
        self._content: dict[str, Any] = {"made": {}, "seconds": {}, "files": {}, **(found or {})}
        self._is_changed = False

    @property
    def made(self) -> dict[str, str]:
        return self._content["made"]

    @property
    def seconds(self) -> dict[str, float]:
        return self._content["seconds"]

    def know(self, path: Path, sha256: str) -> None:
        """Notes what a file's sha256 is, by who wrote or read it just now."""
        self.note(os.path.realpath(path), sha256, _stamp(path))

    def note(self, name: str, sha256: str, stamp: list[Any]) -> None:
        """Notes what the sha256 of a file is that has this stamp; `name` is its path, or its URL."""
        if self._passing is not None and name.startswith(self._passing):
            return
        self._content["files"][name] = [sha256, stamp]
        self._is_changed = True

    def known(self, name: str, stamp: list[Any]) -> str | None:
        """What the sha256 of a file was when it had this stamp; None if that is not noted."""
        sha256, noted = self._content["files"].get(name, ["", []])
        return sha256 if noted == stamp else None

    def finished(self, name: str, seconds: float, **made: str) -> None:
        """Notes a step's end, and what it made by which key, and writes the file. Raises: DiskError."""
        self.seconds[name] = round(seconds, 3)
        self.made.update(made)
        self._is_changed = True
        self.save()

    def save(self) -> None:
        """Writes the file if there is something new. Raises: DiskError."""
        if self._is_changed:
            write_sealed(self._path, self._content)
            self._is_changed = False

    def hashes(self, paths: Sequence[Path], *, progress: Progress = SILENT) -> list[str]:
        """sha256 of files: as it was, of those that have the size, time and number they had then; of others it is taken.

        Raises: OSError for a file that cannot be read.
        """
        names = {path: os.path.realpath(path) for path in paths}
        stamps = {path: _stamp(path) for path in paths}
        found = {path: self.known(names[path], stamps[path]) for path in paths}
        stale = [path for path in paths if found[path] is None]
        for path, sha256 in zip(stale, hash_files(stale, jobs=os.cpu_count() or 1, progress=progress), strict=True):
            found[path] = sha256
            self.note(names[path], sha256, stamps[path])
        return [found[path] or "" for path in paths]


def _stamp(path: Path) -> list[Any]:
    """What changes with a file's content."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]
