"""sha256 of files, taken by a thread while the files are written."""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..graph.files import forget

_AT_ONCE = 1 << 20
# New bytes a file is flushed after, so that little is left to be flushed when it is published.
_FLUSHED_BYTES = 256 << 20


class _Written:
    """One file of known size: hashed from its start as far as it is finished."""

    def __init__(self, path: Path, pieces: Iterable[tuple[int, int]], *, forgets: bool) -> None:
        self.path, self._forgets = path, forgets
        self.n_hashed = self.n_finished = self.n_flushed = 0
        self._ahead: list[tuple[int, int]] = []
        self._buffer = memoryview(bytearray(_AT_ONCE))
        self.digest = hashlib.sha256()
        end = 0
        for start, stop in sorted(pieces):
            self.finish(end, start)  # header and padding lie between what is written in pieces
            end = stop
        self.finish(end, path.stat().st_size)

    def finish(self, start: int, stop: int) -> None:
        heapq.heappush(self._ahead, (start, stop))
        while self._ahead and self._ahead[0][0] <= self.n_finished:
            self.n_finished = max(self.n_finished, heapq.heappop(self._ahead)[1])

    def hash_to(self, stop: int) -> None:
        """Reads what is finished while it is still in the page cache; flushes it to disk bit by bit."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.n_hashed)
            while self.n_hashed < stop:
                n_read = file.readinto(self._buffer[: min(_AT_ONCE, stop - self.n_hashed)])
                if not n_read:
                    raise OSError(f"{self.path}: is shorter than what was written to it")
                self.digest.update(self._buffer[:n_read])
                self.n_hashed += n_read
            if self.n_hashed - self.n_flushed >= _FLUSHED_BYTES:
                os.fsync(file.fileno())
                self.n_flushed = self.n_hashed
                if self._forgets:
                    forget(file.fileno(), self.n_flushed)


class WriteHashes:
    """Hashes files whose pieces are written in any order. A context: leaving it waits for all, or drops all on failure.

    `digests` has the sha256 of each path, hexadecimal, afterwards. With `forgets` what is hashed leaves memory.
    """

    def __init__(self, folder: Path, pieces: Mapping[str, Iterable[tuple[int, int]]], *, forgets: bool) -> None:
        self._files = {name: _Written(folder / name, planned, forgets=forgets) for name, planned in pieces.items()}
        self._is_over = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self.digests: dict[str, str] = {}

    def finish(self, name: str, start: int, stop: int) -> None:
        """The bytes [start, stop) of a file are as they will stay."""
        with self._changed:
            self._files[name].finish(start, stop)
            self._changed.notify_all()

    def __enter__(self) -> WriteHashes:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._is_over = True
            if kind is not None:
                self._files = {}
            self._changed.notify_all()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                file, stop = work
                file.hash_to(stop)
            self.digests = {name: file.digest.hexdigest() for name, file in self._files.items()}
        except OSError as error:
            self._error = error

    def _next(self) -> tuple[_Written, int] | None:
        """A file with more to hash, and up to where; None when all is done."""

        def found() -> tuple[_Written, int] | None:
            ready = (f for f in self._files.values() if f.n_finished > f.n_hashed)
            file = next(ready, None)
            return None if file is None else (file, file.n_finished)

        with self._changed:
            self._changed.wait_for(lambda: self._is_over or found() is not None)
            return found()
