"""Rows of weights that have the same inputs, tuned by several workers and put into a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...graph.errors import InputError
from ...graph.graph import Weight
from ...graph.progress import Progress
from ...graph.reference.cores import SINGLE_BLAS
from ...graph.roles import Address, Role
from ...graph.tensor import Shape
from ..committed import Tunable
from ..encoding import matrix_height
from .codes import Tuner
from .memory import ROWS, Scratch
from .moments import Moments, Settled, shared_with_rows
from .store import Store, Writing
from .streams import Inputs, Stage

_P = TypeVar("_P")
_T = TypeVar("_T")
# A weight, and the errors of some of its rows: as the encoder leaves them, and tuned.
_Errors = tuple[Address, float, float]


@dataclass(frozen=True)
class Rows:
    """Weights of a layer, or of none, by their roles, with the encodings of those that are tuned."""

    weights: Mapping[Role, Weight]
    encodings: Mapping[Address, Tunable]
    store: Store
    scratch: Scratch
    progress: Progress

    def _weight(self, address: Address) -> Weight:
        return self.weights[address[0]]

    def add(self, batch: Sequence[tuple[Moments, Inputs]]) -> None:
        """Adds inputs of a batch to moments, on all workers."""
        pieces = [(moments, columns, x) for moments, x in batch for columns in moments.columns()]
        self._each(lambda piece: piece[0].add_columns(piece[1], *piece[2]), pieces)
        for moments, x in batch:
            moments.count(x.quantised)

    def tune(self, stage: Stage, moments: dict[int, Moments], *, is_looked_up: bool = False) -> None:
        """Tunes weights with the same inputs: slice by slice of a stack, or rows of the only one, on all workers.

        Rows that are also embeddings are `is_looked_up`. Raises: InputError for inputs that are no numbers; DiskError.
        """
        for which, each in moments.items():
            if not np.isfinite(each.mean_squares).all():
                name = self._weight(stage[0]).view.name
                raise InputError(f"tensor '{name}': the text gives it inputs that are no numbers in slice {which}")
        with SINGLE_BLAS, ExitStack() as stack:
            open_files = {
                address: stack.enter_context(self.store.writing(address, self.encodings[address], self._shape(address)))
                for address in stage
            }
            among = _among(moments) if len(moments) > 1 else None
            found: list[list[_Errors]] = []
            if among is None:
                settled = moments[0].settled()
                moments.clear()
                tuner = Tuner.of(shared_with_rows(settled) if is_looked_up else settled)
                pieces = [(address, rows) for address in stage for rows in self._pieces(address, 0)]
                found.append(self._each(lambda piece: self._rows(tuner, *piece, open_files[piece[0]]), pieces))
            else:
                found += self._each(
                    lambda which: self._slice(stage, which, moments[which], among, open_files), sorted(moments)
                )
        for address in stage:
            errors = np.sum([(one[1], one[2]) for some in found for one in some if one[0] == address], axis=0)
            self.store.add(
                address, self.encodings[address], self._shape(address), stock=float(errors[0]), tuned=float(errors[1])
            )

    def _slice(
        self, stage: Stage, which: int, moments: Moments, among: Settled, open_files: Mapping[Address, Writing]
    ) -> list[_Errors]:
        tuner = Tuner.of(moments.settled(among))
        return [
            self._rows(tuner, address, rows, open_files[address])
            for address in stage
            for rows in self._pieces(address, which)
        ]

    def _pieces(self, address: Address, which: int) -> list[range]:
        """Rows of a slice that are tuned together."""
        height = matrix_height(self._shape(address))
        first = which * height
        return [range(start, min(start + ROWS, first + height)) for start in range(first, first + height, ROWS)]

    def _rows(self, tuner: Tuner, address: Address, rows: range, file: Writing) -> _Errors:
        view = self._weight(address).view
        found = tuner.tune(self.encodings[address], view.rows(rows.start, rows.stop), rows.start)
        file.put(rows.start, found.parts)
        self.progress.advance(len(rows) * view.n_cols)
        return address, float(found.stock.sum()), float(found.errors.sum())

    def _shape(self, address: Address) -> Shape:
        return self._weight(address).shape

    def _each(self, work: Callable[[_P], _T], pieces: Sequence[_P]) -> list[_T]:
        """What work gives for each piece, by several workers."""
        with SINGLE_BLAS, ThreadPoolExecutor(self.scratch.room.jobs, thread_name_prefix="tune") as pool:
            try:
                return list(pool.map(work, pieces))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _among(moments: Mapping[int, Moments]) -> Settled:
    """What all experts of a layer meet."""
    together = Moments(moments[0].n_cols)
    for each in moments.values():
        together.add_sums(each)
    return together.settled()
