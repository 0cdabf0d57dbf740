"""Data that goes from the scratch file into an artifact without being held in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir._serialize._cord import FileBackedData

_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """One part of one encoded matrix in the scratch file. Units: bytes."""

    label: str
    path: Path
    offset: int
    nbytes: int
    dtype: np.dtype[Any]

    def chunks(self, n_bytes: int = _COPY_BYTES) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                data = file.read(min(left, n_bytes))
                left -= len(data)
                yield data

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return Stored([self]).sha256().hex()


class Stored(FileBackedData):  # type: ignore[misc]
    """Literal bytes and pieces one after the other, as executorch's serialiser takes data that is not in memory."""

    def __init__(self, pieces: Sequence[bytes | Piece]) -> None:
        self._pieces = pieces
        self._digest: bytes | None = None

    def __len__(self) -> int:
        return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in self._pieces)

    def chunks(self, n_bytes: int = _COPY_BYTES) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from piece.chunks(n_bytes)

    def prefix(self, size: int) -> bytes:
        found = b""
        for chunk in self.chunks(size):
            found += chunk[: size - len(found)]
            if len(found) == size:
                break
        return found

    def sha256(self) -> bytes:
        if self._digest is None:
            found = hashlib.sha256()
            for chunk in self.chunks():
                found.update(chunk)
            self._digest = found.digest()
        return self._digest

    def to_bytes(self) -> bytes:
        return b"".join(self.chunks())

    def write_to_file(self, outfile: io.BufferedIOBase) -> None:
        for chunk in self.chunks():
            outfile.write(chunk)
