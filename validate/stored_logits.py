"""Logits on their way from the process that runs an artifact to the one that scores it: a file a prompt, read by rows.

Tokens x vocabulary in float32 are larger than many models. So nobody but the runtime holds them whole, and no more than
two prompts of them are on disk at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..graph.dtypes import Float32

_MAX_WAITING = 2
_POLL_S = 0.005


class StoredLogits:
    """Logits [n, V] in a file of float32; slices are read when they are asked for."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._row_bytes = 4 * vocab_size
        self.shape = (path.stat().st_size // self._row_bytes, vocab_size)

    def __getitem__(self, rows: slice) -> Float32:
        start, stop, _ = rows.indices(self.shape[0])
        n_rows = max(0, stop - start)
        found = np.fromfile(self._path, np.float32, n_rows * self.shape[1], offset=start * self._row_bytes)
        return found.reshape(n_rows, self.shape[1])

    def moved_to(self, folder: Path) -> StoredLogits:
        """The same, in another folder of the same device."""
        return StoredLogits(self._path.rename(folder / self._path.name), self.shape[1])

    def drop(self) -> None:
        """Removes the file, unless it was moved."""
        self._path.unlink(missing_ok=True)


def save_logits(
    folder: Path, index: int, pieces: Iterable[Float32], *, also: Path | None = None
) -> StoredLogits | None:
    """Publishes the logits of one prompt, which come in pieces [n, V], once whoever takes them has taken most of those
    before; `also` is a file of one's own, which is returned.

    The published file may be gone as soon as it is there.
    """
    while len(list(folder.glob("logits-*.f32"))) >= _MAX_WAITING:
        time.sleep(_POLL_S)
    paths = [path for path in (also, _path(folder, index)) if path is not None]
    vocab_size = 0
    with ExitStack() as stack:
        files = [stack.enter_context(path.with_suffix(".part").open("wb")) for path in paths]
        for piece in pieces:
            vocab_size = piece.shape[1]
            for file in files:
                np.ascontiguousarray(piece, np.float32).tofile(file)
    for path in paths:
        path.with_suffix(".part").replace(path)
    return None if also is None else StoredLogits(also, vocab_size)


def take_logits(folder: Path, index: int, *, vocab_size: int) -> StoredLogits | None:
    """The logits of a prompt, which the taker drops; None if they are not there yet."""
    path = _path(folder, index)
    return StoredLogits(path, vocab_size) if path.exists() else None


def _path(folder: Path, index: int) -> Path:
    return folder / f"logits-{index:05d}.f32"
