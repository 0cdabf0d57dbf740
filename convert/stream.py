"""Streams tensors into files: row ranges are read, encoded and written at known offsets by workers.

Peak memory is the byte budget whatever the model's size, and the bytes written do not depend on the
number of workers or the length of the ranges, since rows are encoded independently.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quantize.encoding import Bytes
from .errors import InputError
from .model.dtypes import Float32
from .plans import DEFAULT_BUDGET_BYTES, TensorPlan

# One range of rows as float32; encoders need a few times this as scratch.
DEFAULT_RANGE_BYTES = 4 << 20
_SCRATCH_FACTOR = 8


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a plan is carried out. Units: bytes; `progress` is called with source bytes done.

    `note` gets what only the weights could tell, a sentence each, for the manifest.
    """

    jobs: int = 1
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    range_bytes: int = DEFAULT_RANGE_BYTES
    progress: Callable[[int], None] = lambda n_bytes: None
    note: Callable[[str], None] = lambda sentence: None
    cancelled: threading.Event | None = None


@dataclass(frozen=True)
class _Range:
    tensor: TensorPlan
    start: int
    stop: int


def write_tensors(tensors: Sequence[TensorPlan], folder: Path, run: Execution) -> None:
    """Encodes and writes every tensor into its placements. The files must exist at their full size.

    Raises: InputError for a value the encoding cannot hold; whatever reading or writing raises.
    """
    budget = _Budget(run.budget_bytes)
    with ExitStack() as stack:
        files = _open_files(tensors, folder, stack)
        pool = stack.enter_context(ThreadPoolExecutor(max(1, run.jobs), thread_name_prefix="encode"))
        pending: set[Future[None]] = set()
        try:
            for piece in _ranges(tensors, run.range_bytes):
                cost = budget.take(_cost(piece))
                pending.add(pool.submit(_write_range, piece, files, run, budget, cost))
                finished = {future for future in pending if future.done()}
                pending -= finished
                _raise_first(finished)
            done, pending = wait(pending, return_when=FIRST_EXCEPTION)
            _raise_first(done)
            _raise_first(wait(pending).done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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
    for tensor in tensors:
        tile = tensor.encoding.tile_rows
        step = max(tile, range_bytes // (4 * tensor.view.n_cols) // tile * tile)
        for first in range(0, tensor.view.n_rows, tensor.rows_per_slice):
            for start in range(first, first + tensor.rows_per_slice, step):
                yield _Range(tensor, start, min(start + step, first + tensor.rows_per_slice))


def _cost(piece: _Range) -> int:
    return _SCRATCH_FACTOR * 4 * piece.tensor.view.n_cols * (piece.stop - piece.start)


def _open_files(tensors: Sequence[TensorPlan], folder: Path, stack: ExitStack) -> dict[str, int]:
    paths = {placement.path for tensor in tensors for placement in tensor.placements}
    files = {}
    for path in sorted(paths):
        files[path] = os.open(folder / path, os.O_WRONLY)
        stack.callback(os.close, files[path])
    return files


def _write_range(piece: _Range, files: dict[str, int], run: Execution, budget: _Budget, cost: int) -> None:
    try:
        if run.cancelled is not None and run.cancelled.is_set():
            return
        tensor = piece.tensor
        rows = tensor.view.rows(piece.start, piece.stop)
        encoded = _encode(piece, rows)
        parts = tensor.encoding.parts(tensor.view.n_cols)
        for part, values, placement in zip(parts, encoded, tensor.placements, strict=True):
            data = np.ascontiguousarray(values, part.dtype)
            _check(piece, part.name, data, part.row_nbytes)
            _write_at(files[placement.path], data, placement.offset + piece.start * part.row_nbytes)
        run.progress(rows.size * tensor.view.dtype.itemsize)
    finally:
        budget.give(cost)


def _encode(piece: _Range, rows: Float32) -> tuple[Bytes, ...]:
    tensor = piece.tensor
    importance = None if tensor.importance is None else tensor.importance[piece.start // tensor.rows_per_slice]
    try:
        return tensor.encoding.encode(rows, importance)
    except InputError as error:
        name, encoding = tensor.view.name, tensor.encoding.name
        raise InputError(f"tensor '{name}' rows {piece.start}:{piece.stop} do not fit {encoding}: {error}") from None


def _check(piece: _Range, part: str, data: NDArray[Any], row_nbytes: int) -> None:
    expected = (piece.stop - piece.start) * row_nbytes
    if data.nbytes != expected:
        raise ValueError(f"'{piece.tensor.name}' {part}: encoded to {data.nbytes} bytes, planned {expected}")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        row = piece.start + int(np.argwhere(~np.isfinite(data))[0][0])
        raise InputError(
            f"tensor '{piece.tensor.view.name}' row {row} does not fit {piece.tensor.encoding.name} "
            f"({part}: beyond ±65504): choose a wider encoding"
        )


def _write_at(file: int, data: NDArray[Any], offset: int) -> None:
    left = data.reshape(-1).view(np.uint8).data
    while left:
        n = os.pwrite(file, left, offset)
        left, offset = left[n:], offset + n


def _raise_first(futures: set[Future[None]]) -> None:
    for future in futures:
        future.result()
