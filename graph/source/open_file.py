"""The files that a source's weights are read from: open while anybody reads, and hashed meanwhile."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..files import RunningHash
from .stamps import stamp_of


class OpenFile:
    """One open file. Units: `size` in bytes. Raises: InputError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size
        self._hash: RunningHash | None = None

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a buffer from an offset. Not mapped: of a file that shrinks meanwhile a mapping would end the process.

        Raises: InputError if the file ends before; OSError if it cannot be read.
        """
        running = self._hash
        if running is None:
            self._fill(buffer, start)
        else:
            running.read(self._fill, buffer, start)

    @contextmanager
    def hashed(self, *, forgets: bool) -> Iterator[RunningHash]:
        """Takes the file's hash from what is read of it from now on."""
        self._hash = RunningHash(self._descriptor, forgets=forgets)
        try:
            yield self._hash
        finally:
            self._hash = None

    def _fill(self, buffer: memoryview, start: int) -> None:
        while buffer:
            n_read = os.preadv(self._descriptor, [buffer], start)
            if n_read == 0:
                raise InputError(f"{self.path}: ends at {start}: it was changed while it was being read")
            buffer, start = buffer[n_read:], start + n_read


class SourceFiles:
    """The weight files of a source. `are_all` says that they hold the config and the tokenizer, too."""

    def __init__(self, files: Sequence[OpenFile], *, are_all: bool = False) -> None:
        self.files, self.are_all = tuple(files), are_all
        self.stamps = tuple(stamp_of(file.path) for file in self.files)
