"""What tuning codes holds at a time, from shapes alone, and which of it lies on the disk under a limit.

Held are a batch's widest activations in both streams, the sums of moments that the widest matrix needs, what is solved
of them, and what each worker has of the rows it tunes. The residual streams, the inputs of a branch's last matrix and
the moments of a stack's experts lie on the disk where there is no room for them; workers are fewer then, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import UsageError
from ...graph.graph import Weight, WeightGraph
from ...graph.roles import Trait
from ...graph.tensor import Shape
from ...graph.units import format_size
from ..together import BATCH_TOKENS

# Rows that are tuned together: a multiple of every encoding's tiles.
ROWS = 128
# The interpreter, what it imports, and machine code, in bytes.
_BASE_BYTES = 400_000_000
# Arrays of float32 at a time, as measured with generated weights. Of a batch in both streams as wide as the widest
# matrix; of columns by columns, sums and what one matrix is solved by; of a worker's rows.
_ACTIVATIONS, _SUMS, _SOLVED, _OF_ROWS = 8, 2, 5, 24
# Without a limit streams that are larger lie on the disk.
_HELD_BYTES = 1 << 29


@dataclass(frozen=True)
class Room:
    """How many workers tune, and what of the streams and of the moments of experts is held rather than on the disk."""

    jobs: int = 1
    held_stream_bytes: int = _HELD_BYTES
    holds_moments: bool = True


@dataclass(frozen=True)
class Scratch:
    """Arrays of a run, held or in files of a folder that `close` removes."""

    folder: Path
    room: Room
    _files: list[Path] = field(default_factory=list, init=False)

    def stream(self, name: str, shape: Shape) -> Float32:
        """An array as long as the text; of the same name one at a time."""
        if 4 * int(np.prod(shape)) <= self.room.held_stream_bytes:
            return np.empty(shape, np.float32)
        return self._file(name, shape)

    def sums(self, which: int, n_cols: int, *, n_slices: int) -> Float32:
        """Zeros [2, n_cols, n_cols] for the moments of one slice of so many."""
        shape = (2, n_cols, n_cols)
        if n_slices == 1 or self.room.holds_moments:
            return np.zeros(shape, np.float32)
        return self._file(f"moments-{which}", shape)

    def close(self) -> None:
        """Removes what lies on the disk."""
        for file in self._files:
            file.unlink(missing_ok=True)

    def _file(self, name: str, shape: Shape) -> Float32:
        path = self.folder / name
        if path in self._files:
            path.unlink(missing_ok=True)  # whoever still has the one before keeps it
        else:
            self._files.append(path)
        return np.memmap(path, np.float32, "w+", shape=shape)


def tuning_bytes(graph: WeightGraph, n_tokens: int, room: Room) -> int:
    """Bytes that tuning codes by so many tokens holds at most, beside the files it maps."""
    matrices = _matrices(graph)
    n_batch = min(n_tokens, BATCH_TOKENS)
    widths = [max(each.view.n_cols, each.view.shape[-2]) for each in matrices if each.layer is not None]
    activations = 4 * _ACTIVATIONS * n_batch * max(widths, default=graph.config.hidden_size)
    solving = max((_solving_bytes(each.view.shape, room) for each in matrices), default=0)
    rows = 4 * _OF_ROWS * ROWS * max((each.view.n_cols for each in matrices), default=0) * room.jobs
    waiting = max((each.view.n_cols for each in matrices if each.role.trait is Trait.MATRIX), default=0)
    streams = [4 * n_tokens * n for n in (graph.config.hidden_size, graph.config.hidden_size, waiting)]
    held = sum(n_bytes for n_bytes in streams if n_bytes <= room.held_stream_bytes)
    return _BASE_BYTES + held + max(activations + _sums_bytes(matrices, room), solving + rows)


def room_for(graph: WeightGraph, n_tokens: int, *, jobs: int = 1, max_memory: int | None = None) -> Room:
    """As much room as a limit leaves; all that is wanted without one.

    Raises: UsageError for a limit below what one worker needs with everything on the disk that can lie there.
    """
    if max_memory is None:
        return Room(jobs)
    tight = [
        Room(n, held, holds) for n in range(jobs, 0, -1) for held, holds in ((_HELD_BYTES, True), (0, True), (0, False))
    ]
    for room in tight:
        if tuning_bytes(graph, n_tokens, room) <= max_memory:
            return room
    least = format_size(tuning_bytes(graph, n_tokens, tight[-1]))
    raise UsageError(
        f"--max-memory {format_size(max_memory)} is too little to tune the codes of {graph.name}: at least {least}"
    )


def _matrices(graph: WeightGraph) -> list[Weight]:
    return [w for w in graph.weights() if w.role.trait in (Trait.MATRIX, Trait.EXPERTS) or w.view is graph.head]


def _sums_bytes(matrices: Iterable[Weight], room: Room) -> int:
    return max((4 * _SUMS * w.view.n_cols**2 * _held_slices(w.view.shape, room) for w in matrices), default=0)


def _solving_bytes(shape: Shape, room: Room) -> int:
    """Sums, and what is solved of them by each worker that has a matrix of its own."""
    n_slices, square = _held_slices(shape, room), 4 * shape[-1] ** 2
    if len(shape) != 3:
        return square * (_SUMS + _SOLVED)
    return square * (_SUMS * (n_slices + 1) + _SUMS + _SOLVED * room.jobs)


def _held_slices(shape: Shape, room: Room) -> int:
    if len(shape) != 3:
        return 1
    return shape[0] if room.holds_moments else 0
