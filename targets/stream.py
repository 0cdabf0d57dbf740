"""Streams tensors into files: row ranges are read, encoded and written at known offsets by workers.

Peak memory is the byte budget whatever the model's size, and the bytes written do not depend on the
number of workers or the length of the ranges, since rows are encoded independently.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.errors import InputError
from ..quantize.encoding import Bytes, Part, matrix_height
from ..quantize.grids import passed
from .hashing import WriteHashes
from .journal import Journal
from .plans import DEFAULT_BUDGET_BYTES, TensorPlan

# One range of rows as float32; encoders need a few times this as scratch.
DEFAULT_RANGE_BYTES = 4 << 20
_SCRATCH_FACTOR = 8


class Profile:
    """Seconds that threads spent on each stage of writing; all workers together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a plan is carried out. Units: bytes; `progress` is called with source bytes done.

    `note` gets what only the weights could tell, a sentence each, for the manifest. `journal` is where it is noted
    what is written, and read what an earlier run wrote. With `forgets` what is written leaves memory once it is on the
    disk. `digests` collects the sha256 of files by path, `profile` where the time goes.
    """

    jobs: int = 1
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    range_bytes: int = DEFAULT_RANGE_BYTES
    progress: Callable[[int], None] = lambda n_bytes: None
    note: Callable[[str], None] = lambda sentence: None
    journal: Path | None = None
    forgets: bool = False
    digests: dict[str, str] = field(default_factory=dict)
    profile: Profile = field(default_factory=Profile)


@dataclass(frozen=True)
class _Range:
    tensor: TensorPlan
    start: int
    stop: int
    key: str

    @cached_property
    def source(self) -> tuple[str, int]:
        """Path and offset of the first row, as far as they are known."""
        return self.tensor.view.place(self.start)

    @cached_property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        """Path, offset and bytes of each part."""
        height = matrix_height(self.tensor.view.shape)
        found = []
        for part, placement in zip(self.parts, self.tensor.placements, strict=True):
            start, stop = (part.offset(row, height) for row in (self.start, self.stop))
            found.append((placement.path, placement.offset + start, stop - start))
        return tuple(found)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.tensor.encoding.parts(self.tensor.view.n_cols)


def prepare_file(path: Path, *, header: bytes, n_bytes: int) -> None:
    """A file of its full size that starts with its header; what an interrupted run wrote behind it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.is_file() else "wb") as file:
        file.write(header)
        file.truncate(n_bytes)


def write_tensors(tensors: Sequence[TensorPlan], folder: Path, run: Execution) -> None:
    """Encodes and writes every tensor into its placements. The files must exist at their full size.

    Raises: InputError for a value the encoding cannot hold; whatever reading or writing raises.
    """
    ranges = list(_in_order(_ranges(tensors, run.range_bytes)))
    pieces: dict[str, list[tuple[int, int]]] = {}
    for each in ranges:
        for name, start, n_bytes in each.places:
            pieces.setdefault(name, []).append((start, start + n_bytes))
    with ExitStack() as stack:
        hashes = stack.enter_context(WriteHashes(folder, pieces, forgets=run.forgets))
        writer = _Writer(
            run=run,
            files=_open_files(pieces, folder, stack),
            budget=_Budget(run.budget_bytes),
            hashes=hashes,
            journal=stack.enter_context(closing(Journal(run.journal))) if run.journal else None,
        )
        _write_all(ranges, writer)
    run.digests.update(hashes.digests)


def _write_all(ranges: Iterable[_Range], writer: _Writer) -> None:
    """Each worker takes the next range itself: one that hands them out would be woken for each, and keep all waiting."""
    left = deque(ranges)
    with ThreadPoolExecutor(max(1, writer.run.jobs), thread_name_prefix="encode") as pool:
        try:
            workers = [pool.submit(writer.write_while, left) for _ in range(max(1, writer.run.jobs))]
            for worker in as_completed(workers):
                worker.result()
        finally:
            left.clear()  # after a fault, or an interrupt, nobody begins another


class _Budget:
    """Bytes in flight: a range waits until its share is free; one larger than all waits for all."""

    def __init__(self, n_bytes: int) -> None:
        self._total = self._free = max(1, n_bytes)
        self._changed = threading.Condition()

    def take(self, n_bytes: int) -> int:
        n_bytes = min(n_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= n_bytes)
            self._free -= n_bytes
        return n_bytes

    def give(self, n_bytes: int) -> None:
        with self._changed:
            self._free += n_bytes
            self._changed.notify_all()


def _ranges(tensors: Sequence[TensorPlan], range_bytes: int) -> Iterator[_Range]:
    for index, tensor in enumerate(tensors):
        tile, n_together = tensor.encoding.tile_rows, tensor.rows_per_slice
        step = max(tile, range_bytes // (4 * tensor.view.n_cols) // tile * tile)
        if len(tensor.view.shape) > 2 and tensor.view.shape[-2] > 1:  # a stack, of which each may lie elsewhere
            n_together = min(n_together, tensor.view.shape[-2])
        for first in range(0, tensor.view.n_rows, n_together):
            for start in range(first, first + n_together, step):
                stop = min(start + step, first + n_together)
                yield _Range(tensor, start, stop, f"{index}:{start}:{stop}")


def _in_order(ranges: Iterable[_Range]) -> Iterator[_Range]:
    """Each file of the source from start to end, as disks and its hash want it; of several the one that the next bytes of
    the artifact come from, so that its hash keeps up.
    """
    left: dict[str, deque[_Range]] = {}
    for each in sorted(ranges, key=lambda each: (each.source, each.places)):
        left.setdefault(each.source[0], deque()).append(each)
    taken = set[str]()
    for each in sorted((each for file in left.values() for each in file), key=attrgetter("places")):
        while each.key not in taken:
            following = left[each.source[0]].popleft()
            taken.add(following.key)
            yield following


def _cost(piece: _Range) -> int:
    return _SCRATCH_FACTOR * 4 * piece.tensor.view.n_cols * (piece.stop - piece.start)


def _open_files(paths: Iterable[str], folder: Path, stack: ExitStack) -> dict[str, int]:
    files = {}
    for path in sorted(paths):
        files[path] = os.open(folder / path, os.O_RDWR)
        stack.callback(os.close, files[path])
    return files


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """What the workers share."""

    run: Execution
    files: dict[str, int]
    budget: _Budget
    hashes: WriteHashes
    journal: Journal | None

    def write_while(self, left: deque[_Range]) -> None:
        """Range after range, on a worker's thread."""
        while left:
            try:
                piece = left.popleft()
            except IndexError:  # another took the last one
                return
            self._write(piece)

    def _write(self, piece: _Range) -> None:
        with self.run.profile.stage("wait"):
            cost = self.budget.take(_cost(piece))
        try:
            places = piece.places
            if self.journal and self.journal.holds(piece.key, [(self.files[p], at, n) for p, at, n in places]):
                if piece.tensor.view.is_observed:
                    piece.tensor.view.rows(piece.start, piece.stop)
            else:
                self._encode(piece, places)
            for name, start, n_bytes in places:
                self.hashes.finish(name, start, start + n_bytes)
            self.run.progress((piece.stop - piece.start) * piece.tensor.view.row_nbytes)
        finally:
            self.budget.give(cost)

    def _encode(self, piece: _Range, places: Sequence[tuple[str, int, int]]) -> None:
        stage = self.run.profile.stage
        if piece.tensor.passes:
            with stage("read"):
                encoded = passed(piece.tensor.view, piece.tensor.encoding, piece.start, piece.stop)
        else:
            with stage("read"):
                rows = piece.tensor.view.rows(piece.start, piece.stop)
            with stage("encode"):
                encoded = _encode(piece, rows)
        written = []
        with stage("write"):
            for part, values, (name, offset, n_bytes) in zip(piece.parts, encoded, places, strict=True):
                data = np.ascontiguousarray(values, part.dtype)
                _check(piece, part.name, data, n_bytes)
                written.append(data.reshape(-1).view(np.uint8).data)
                _write_at(self.files[name], written[-1], offset)
            if self.journal:
                self.journal.add(piece.key, written)


def _encode(piece: _Range, rows: Float32) -> tuple[Bytes, ...]:
    tensor = piece.tensor
    importance = None if tensor.importance is None else tensor.importance[piece.start // tensor.rows_per_slice]
    try:
        return tensor.encoding.encode(rows, importance)
    except InputError as error:
        name, encoding = tensor.view.name, tensor.encoding.name
        raise InputError(f"tensor '{name}' rows {piece.start}:{piece.stop} do not fit {encoding}: {error}") from None


def _check(piece: _Range, part: str, data: NDArray[Any], expected: int) -> None:
    if data.nbytes != expected:
        raise ValueError(f"'{piece.tensor.name}' {part}: encoded to {data.nbytes} bytes, planned {expected}")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        row = piece.start + int(np.argwhere(~np.isfinite(data))[0][0])
        raise InputError(
            f"tensor '{piece.tensor.view.name}' row {row} does not fit {piece.tensor.encoding.name} "
            f"({part}: beyond ±65504): choose a wider encoding"
        )


def _write_at(file: int, left: memoryview, offset: int) -> None:
    while left:
        n = os.pwrite(file, left, offset)
        left, offset = left[n:], offset + n
