"""Publishes files so that a destination is never half written.

New files are built in a hidden folder beside the destination, flushed to disk, and moved in by renames
under a commit record. Before the record exists a failure leaves the destination untouched; after it
exists, everything new is whole on disk and the next run finishes the renames. One lock a destination.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import DiskError
from .progress import SILENT, Progress
from .units import format_size

_COMMIT = "commit.json"
_HASHED_AT_ONCE = 1 << 20
_SPARE_BYTES = 16 << 20  # headers, manifest and file-system overhead beside the planned bytes
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Staging:
    """A folder under construction; `publish` moves its files into the destination."""

    def __init__(self, folder: Path, destination: Path) -> None:
        self.folder = folder
        self._destination = destination

    def publish(self, *, remove: Iterable[str] = ()) -> None:
        """Moves every file built so far to the same relative path; then drops the paths in `remove`."""
        moves = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        for name in moves:
            _flush(self.folder / name)
        record = self.folder / _COMMIT
        record.write_text(json.dumps({"moves": moves, "remove": sorted(set(remove) - set(moves))}))
        _flush(record)
        _flush(self.folder)
        _roll_forward(self.folder, self._destination)


@contextmanager
def staged(destination: Path, *, need_bytes: int) -> Iterator[Staging]:
    """A staging folder for `destination`, locked against other runs and removed at the end.

    Raises: DiskError if the destination cannot be written, has too little room, or is being written by
    another run; a full disk on the way is turned into DiskError too.
    """
    destination = destination.absolute()
    folder = _staging_folder(destination)
    lock = FileLock(_lock_path(destination), timeout=0)
    try:
        with lock:
            recover(destination)
            try:
                _prepare(folder, destination, need_bytes)
                yield Staging(folder, destination)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)  # still held; whoever waits on it sees it is gone
    except Timeout:
        raise DiskError(f"{destination}: another run is writing there; wait for it or choose another --out") from None
    except OSError as error:
        raise disk_error(error, destination) from error


def recover(destination: Path) -> None:
    """Finishes a publication that was interrupted after its commit record, and sweeps any other rest."""
    folder = _staging_folder(destination.absolute())
    if (folder / _COMMIT).is_file():
        with suppress(ValueError):  # a record cut short was never flushed: nothing was moved
            _roll_forward(folder, destination.absolute())
    shutil.rmtree(folder, ignore_errors=True)


def disk_error(error: OSError, where: Path) -> DiskError:
    """The sentence for a failed write."""
    if error.errno in _NO_SPACE:
        free = shutil.disk_usage(_existing_parent(where)).free
        return DiskError(f"{where}: no space left ({format_size(free)} free); nothing was published")
    return DiskError(f"{error.filename or where}: {error.strerror or error}")


def hash_files(paths: Sequence[Path], *, jobs: int, progress: Progress = SILENT) -> list[str]:
    """sha256 of each file, hexadecimal, reading `jobs` files at a time."""
    progress.start("hashing", sum(path.stat().st_size for path in paths), "bytes")
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(partial(_sha256, progress=progress), paths))


def replace_text(path: Path, text: str) -> None:
    """Replaces a small file in one step."""
    part = path.with_name(f".{path.name}.lfm-partial")
    try:
        part.write_text(text, encoding="utf-8")
        _flush(part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def _sha256(path: Path, *, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
            progress.advance(len(piece))
    return digest.hexdigest()


def _staging_folder(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.lfm-partial"


def _lock_path(destination: Path) -> Path:
    key = hashlib.sha256(os.fsencode(destination.resolve())).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"lfm-convert-{key}.lock"


def _existing_parent(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _prepare(folder: Path, destination: Path, need_bytes: int) -> None:
    if destination.exists() and not destination.is_dir():
        raise DiskError(f"{destination}: is a file; --out must be a folder")
    parent = _existing_parent(destination)
    if not os.access(parent, os.W_OK):
        raise DiskError(f"{parent}: is not writable")
    free = shutil.disk_usage(parent).free
    if free < need_bytes + _SPARE_BYTES:
        raise DiskError(f"{destination}: needs {format_size(need_bytes)}, and {format_size(free)} is free")
    folder.mkdir(parents=True)


def _roll_forward(folder: Path, destination: Path) -> None:
    record = json.loads((folder / _COMMIT).read_text())
    for name in record["moves"]:
        source, target = folder / name, destination / name
        if source.exists():  # absent if it was moved before an interruption
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    for name in record["remove"]:
        (destination / name).unlink(missing_ok=True)
    for parent in {(destination / name).parent for name in record["moves"]}:
        _flush(parent)
    (folder / _COMMIT).unlink()


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle to flush a folder by
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
