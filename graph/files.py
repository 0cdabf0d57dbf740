"""Small matters of files: one sentence for a failed write, hashes, replacement in one step."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from .errors import DiskError
from .progress import SILENT, Progress
from .units import format_size

_HASHED_AT_ONCE = 1 << 20
# What is asked of the disk before it is read, so that the disk works while the processor does.
_AHEAD_BYTES = 64 << 20
_ASKED_BYTES = 8 << 20
# Linux takes no more of one such request than the device does, and says nothing of the rest.
_ASKED_AT_ONCE = 512 << 10
# What stays in memory behind the hash: other threads may not have read it yet.
_BEHIND_BYTES = 64 << 20
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

    What they leave out is read here. All of the file being needed, the disk reads ahead of them. With `forgets` bytes
    leave memory some way behind the hash.
    """

    def __init__(self, descriptor: int, *, forgets: bool) -> None:
        self._reading, self._hashing = threading.Lock(), threading.Lock()
        self._descriptor, self._forgets = descriptor, forgets
        self._n_hashed = self._n_forgotten = self._n_expected = 0
        self._digest = hashlib.sha256()

    def read(self, fill: Callable[[memoryview, int], None], buffer: memoryview, start: int) -> None:
        """Has `fill` read bytes from `start` on. Threads come one after the other, and while one's bytes are hashed the
        next one reads: who waits to hash lets nobody read before, so that bytes are hashed in the order they are read in.
        """
        with self._reading:
            fill(buffer, start)
            self._hashing.acquire()
        try:
            self._saw(start, buffer)
        finally:
            self._hashing.release()

    def _saw(self, start: int, data: memoryview) -> None:
        if start + len(data) <= self._n_hashed:
            return
        self._read_to(start)
        self._digest.update(data[self._n_hashed - start :])
        self._n_hashed = start + len(data)
        self._expect()
        if self._n_hashed - self._n_forgotten >= 2 * _BEHIND_BYTES:
            self._forget_to(self._n_hashed - _BEHIND_BYTES)

    def result(self) -> str:
        """Hexadecimal, once the rest is read. Raises: OSError of a file that cannot be read."""
        with self._reading, self._hashing:
            self._read_to(os.fstat(self._descriptor).st_size)
            self._forget_to(self._n_hashed)
        return self._digest.hexdigest()

    def _expect(self) -> None:
        stop = self._n_hashed + _AHEAD_BYTES
        if stop - self._n_expected >= _ASKED_BYTES:
            expect(self._descriptor, max(self._n_hashed, self._n_expected), stop)
            self._n_expected = stop

    def _forget_to(self, stop: int) -> None:
        self._n_forgotten = stop
        if self._forgets:
            forget(self._descriptor, stop)

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


def expect(descriptor: int, start: int, stop: int) -> None:
    """Has the disk read the bytes [start, stop) of a file into memory meanwhile, where the system can."""
    if hasattr(os, "posix_fadvise"):
        for at in range(start, stop, _ASKED_AT_ONCE):
            os.posix_fadvise(descriptor, at, min(_ASKED_AT_ONCE, stop - at), os.POSIX_FADV_WILLNEED)


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
