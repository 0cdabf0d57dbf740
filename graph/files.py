"""Small matters of files: one sentence for a failed write, hashes, replacement in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from .errors import DiskError
from .progress import SILENT, Progress
from .units import format_size

_HASHED_AT_ONCE = 1 << 20
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_error(error: OSError, where: Path) -> DiskError:
    """The sentence for a failed write."""
    if error.errno in _NO_SPACE:
        existing = next(p for p in (where, *where.absolute().parents) if p.exists())
        return DiskError(f"{where}: no space left ({format_size(shutil.disk_usage(existing).free)} free)")
    return DiskError(f"{error.filename or where}: {error.strerror or error}")


def hash_files(paths: Sequence[Path], *, jobs: int, progress: Progress = SILENT) -> list[str]:
    """sha256 of each file, hexadecimal, reading `jobs` files at a time."""
    progress.start("hashing", sum(path.stat().st_size for path in paths), "bytes")
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        return list(pool.map(partial(_sha256, progress=progress), paths))


def digest(hashes: Mapping[str, str]) -> str:
    """One sha256 for files by path: of a single one its own, of several that of what `sha256sum` lists, by path.

    Empty for none.
    """
    if len(hashes) < 2:
        return next(iter(hashes.values()), "")
    listing = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(hashes.items()))
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


class RunningHash:
    """sha256 of an open file that others read, from what they read of it as far as that goes from start to end.

    What they leave out is read here. Whoever reads holds `turn` until the bytes are shown, so that they come in order.
    With `forgets` they leave memory once they are hashed.
    """

    def __init__(self, descriptor: int, *, forgets: bool) -> None:
        self.turn = threading.Lock()
        self._descriptor, self._forgets = descriptor, forgets
        self._n_hashed = 0
        self._digest = hashlib.sha256()

    def saw(self, start: int, data: memoryview) -> None:
        """These are the file's bytes from `start` on."""
        if start + len(data) <= self._n_hashed:
            return
        self._read_to(start)
        self._digest.update(data[self._n_hashed - start :])
        self._n_hashed = start + len(data)
        if self._forgets:
            forget(self._descriptor, self._n_hashed)

    def result(self) -> str:
        """Hexadecimal, once the rest is read. Raises: OSError of a file that cannot be read."""
        with self.turn:
            self._read_to(os.fstat(self._descriptor).st_size)
        return self._digest.hexdigest()

    def _read_to(self, stop: int) -> None:
        while piece := os.pread(self._descriptor, min(_HASHED_AT_ONCE, max(0, stop - self._n_hashed)), self._n_hashed):
            self._digest.update(piece)
            self._n_hashed += len(piece)


def fits_in_memory(n_bytes: int) -> bool:
    """Whether files of so many bytes may stay in the memory that holds files: half of the machine's.

    More would push out what others have there, and itself, before anybody reads it again.
    """
    try:
        return 2 * n_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not known here
        return True


def forget(descriptor: int, n_bytes: int) -> None:
    """Frees the memory that holds a file's first bytes, where the system can and they are on the disk."""
    if n_bytes and hasattr(os, "posix_fadvise"):  # of no bytes it would take all to be meant
        os.posix_fadvise(descriptor, 0, n_bytes, os.POSIX_FADV_DONTNEED)


def replace_text(path: Path, text: str) -> None:
    """Replaces a small file in one step."""
    part = path.with_name(f".{path.name}.lfm-partial")
    try:
        part.write_text(text, encoding="utf-8")
        flush(part)
        part.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)  # there if it failed, or a signal came


def is_file(path: Path) -> bool:
    """Whether a file is there whose name somebody else gave; none is there under a name that no file can have."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def flush(path: Path) -> None:
    """Has a file or folder written to disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle to flush a folder by
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path, *, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
            progress.advance(len(piece))
    return digest.hexdigest()
