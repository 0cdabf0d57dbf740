"""sha256 of files, taken by a thread while the files are written; another has them brought to the disk meanwhile."""

from __future__ import annotations

import hashlib
import heapq
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..graph.files import forget

_AT_ONCE = 1 << 20
# New bytes a file is hashed after: waking a thread for every range costs the others more than the hash.
_HASHED_BYTES = 16 << 20
# New bytes a file is flushed after: few, so that reading is not kept waiting long, and little is left at the end.
_FLUSHED_BYTES = 64 << 20


class _Written:
    """One file of known size: hashed from its start as far as it is finished."""

    def __init__(self, path: Path, pieces: Iterable[tuple[int, int]], *, forgets: bool) -> None:
        self.path, self._forgets = path, forgets
        self.n_hashed = self.n_finished = self.n_written = self.n_flushed = 0
        self._ahead: list[tuple[int, int]] = []
        self._buffer = memoryview(bytearray(_AT_ONCE))
        self.digest = hashlib.sha256()
        end = 0
        for start, stop in sorted(pieces):
            self.finish(end, start)  # header and padding lie between what is written in pieces
            end = stop
        self.finish(end, path.stat().st_size)

    def finish(self, start: int, stop: int) -> None:
        self.n_written += stop - start
        heapq.heappush(self._ahead, (start, stop))
        while self._ahead and self._ahead[0][0] <= self.n_finished:
            self.n_finished = max(self.n_finished, heapq.heappop(self._ahead)[1])

    def hash_to(self, stop: int) -> None:
        """Reads what is finished while it is still in the page cache."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.n_hashed)
            while self.n_hashed < stop:
                n_read = file.readinto(self._buffer[: min(_AT_ONCE, stop - self.n_hashed)])
                if not n_read:
                    raise OSError(f"{self.path}: is shorter than what was written to it")
                self.digest.update(self._buffer[:n_read])
                self.n_hashed += n_read

    def flush(self) -> None:
        """Has what is written brought to the disk, which what is hashed then needs no memory for."""
        with self.path.open("rb", buffering=0) as file:
            n_hashed = self.n_hashed
            os.fsync(file.fileno())
            if self._forgets:
                forget(file.fileno(), n_hashed)


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
        # Of its own: while a file is flushed, it and others are hashed on.
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushes: list[Future[None]] = []
        self.digests: dict[str, str] = {}

    def finish(self, name: str, start: int, stop: int) -> None:
        """The bytes [start, stop) of a file are as they will stay."""
        with self._changed:
            file = self._files[name]
            file.finish(start, stop)
            if file.n_written - file.n_flushed >= _FLUSHED_BYTES:
                self._flush(file)
            if self._is_ready(file):
                self._changed.notify_all()

    def _is_ready(self, file: _Written) -> bool:
        return file.n_finished - file.n_hashed >= (1 if self._is_over else _HASHED_BYTES)

    def _flush(self, file: _Written) -> None:
        file.n_flushed = file.n_written
        self._flushes.append(self._flusher.submit(file.flush))

    def __enter__(self) -> WriteHashes:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._changed:
            self._is_over = True
            if kind is not None:
                self._files = {}
            for file in self._files.values():  # while the rest of them is hashed
                self._flush(file)
            self._changed.notify_all()
        self._thread.join()
        self._flusher.shutdown(cancel_futures=kind is not None)
        if kind is None:
            if self._error is not None:
                raise self._error
            for flush in self._flushes:
                flush.result()

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
            file = next(filter(self._is_ready, self._files.values()), None)
            return None if file is None else (file, file.n_finished)

        with self._changed:
            self._changed.wait_for(lambda: self._is_over or found() is not None)
            return found()
