"""What an interrupted run has written, so that the next one goes on from there.

One line a range of rows: its key and the CRC-32 of the bytes of all its parts. A line says that the bytes were
handed to the operating system; whether they are on the disk is seen by reading them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

_AT_ONCE = 1 << 20


class Journal:
    """The lines of a file, and a way to add to them. Lines that are cut short are passed over."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, int] = {}
        if path.is_file():
            for line in path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]:
                key, _, crc = line.partition(" ")
                with suppress(ValueError):
                    self._known[key] = int(crc, 16)
        self._file = path.open("a", encoding="ascii", buffering=1)

    def add(self, key: str, parts: Iterable[memoryview]) -> None:
        """A range whose parts were written."""
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        self._file.write(f"{key} {crc:x}\n")

    def holds(self, key: str, places: Sequence[tuple[int, int, int]]) -> bool:
        """Whether a range lies on the disk as it was written: `places` are descriptor, offset and bytes of its parts."""
        if key not in self._known:
            return False
        crc = 0
        for file, offset, n_bytes in places:
            while n_bytes and (piece := os.pread(file, min(_AT_ONCE, n_bytes), offset)):
                crc = zlib.crc32(piece, crc)
                offset, n_bytes = offset + len(piece), n_bytes - len(piece)
        return crc == self._known[key]

    def close(self) -> None:
        self._file.close()
