"""Rows of all tokens on disk, read and written a batch at a time: the residual stream between two layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import InputError


class Spool:
    """Matrices [tokens, width] of float32 by name, each a file of its own; plain reads, so that nothing stays mapped."""

    def __init__(self, folder: Path, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._row_bytes, self._width = folder, 4 * width, width

    def write(self, name: str, start: int, rows: Float32) -> None:
        path = self._folder / name
        path.touch()
        with path.open("r+b") as file:
            file.seek(start * self._row_bytes)
            file.write(np.ascontiguousarray(rows).data)

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Raises: InputError for rows that are not there, of a run that was cut off by more than a signal."""
        path, n = self._folder / name, (stop - start) * self._width
        found = np.fromfile(path, np.float32, n, offset=start * self._row_bytes)
        if found.size != n:
            raise InputError(f"{path}: ends before row {stop}: run without --resume to start anew")
        return found.reshape(stop - start, self._width)

    def drop(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
