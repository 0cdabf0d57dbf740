"""What an interrupted run has written, so that the next one goes on from there.

One line a range of rows: its key and the sum of the bytes of all its parts, taken as 64-bit words. A line says that the
bytes were handed to the operating system; whether they are on the disk is seen by reading them. What is looked for is
what never came there, zeros or what stood there before: a sum shows it, and costs a tenth of what a CRC does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

_AT_ONCE = 1 << 20
_WORD, _WRAPS_AT = 8, 1 << 64


class Journal:
    """The lines of a file, and a way to add to them. Lines that are cut short are passed over."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, int] = {}
        if path.is_file():
            for line in path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]:
                key, _, total = line.partition(" ")
                with suppress(ValueError):
                    self._known[key] = int(total, 16)
        self._file = path.open("a", encoding="ascii", buffering=1)

    def add(self, key: str, parts: Iterable[memoryview]) -> None:
        """A range whose parts were written."""
        self._file.write(f"{key} {sum(map(_sum, parts)) % _WRAPS_AT:x}\n")

    def holds(self, key: str, places: Sequence[tuple[int, int, int]]) -> bool:
        """Whether a range lies on the disk as it was written: `places` are descriptor, offset and bytes of its parts."""
        if key not in self._known:
            return False
        total = 0
        for file, offset, n_bytes in places:
            while n_bytes and (piece := os.pread(file, min(_AT_ONCE, n_bytes), offset)):
                total += _sum(piece)
                offset, n_bytes = offset + len(piece), n_bytes - len(piece)
        return total % _WRAPS_AT == self._known[key]

    def close(self) -> None:
        self._file.close()


def _sum(data: bytes | memoryview) -> int:
    """Of 64-bit words, little-endian, and of what is left over; with wraps that the caller takes out."""
    n_words = len(data) // _WORD
    words = np.frombuffer(data, "<u8", n_words)
    return int(words.sum()) + int.from_bytes(data[n_words * _WORD :], "little")
