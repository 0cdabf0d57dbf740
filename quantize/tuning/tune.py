"""Tunes the codes of a model, layer by layer from the quantised prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ...graph.blocks import Branch
from ...graph.errors import InputError, UsageError, needs_extra
from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.progress import SILENT, Progress
from ...graph.reference.cores import SINGLE_BLAS
from ...graph.roles import Address, Trait
from ...graph.tensor import Shape
from ..committed import Tunable
from ..encoding import Encoding, matrix_height
from .codes import Tuner
from .moments import Moments, Settled
from .store import Store, Writing, digest_of
from .streams import Stage, Streams, quantised_layer

# What the codes depend on beside the text and the encodings: another method is another number.
METHOD = 1
# Rows that are tuned together: a multiple of every encoding's tiles.
_ROWS = 128
# Fewer tokens say too little of any matrix.
LEAST_TOKENS = 1024
_NEEDS = "gguf"

_P = TypeVar("_P")
_T = TypeVar("_T")
# A weight, and the errors of some of its rows: as the encoder leaves them, and tuned.
_Errors = tuple[Address, float, float]


class Text(Protocol):
    """What is taken of statistics: the chunks of token ids that were run, and a digest of it all."""

    @property
    def chunks(self) -> Sequence[Sequence[int]]: ...

    @property
    def sha256(self) -> str: ...


def tune(
    graph: WeightGraph,
    chosen: Mapping[Address, Encoding],
    statistics: Text,
    folder: Path,
    *,
    jobs: int = 1,
    progress: Progress = SILENT,
) -> Store:
    """Tuned codes of every matrix of the layers whose chosen encoding can be tuned, in a folder of their own.

    Layers that are finished there are taken as they are. What is found does not depend on `jobs`.
    Raises: UsageError for too little text; InputError for inputs that are no numbers; DiskError; BackendError without
    the compiler.
    """
    refuse_too_little(statistics.chunks)
    with needs_extra(_NEEDS, "tuning codes"):
        from . import _kernels  # noqa: F401  # brings the compiler
    tunable = {address: each for address, each in chosen.items() if isinstance(each, Tunable)}
    names = {(role.value, layer): each.name for (role, layer), each in chosen.items()}
    key = digest_of((METHOD, statistics.sha256, sorted(names.items(), key=str)))
    store = Store(folder, key)
    work = [(layer, _weights(layer, tunable)) for layer in graph.layers]
    progress.start("tuning codes", sum(w.view.n_rows * w.view.n_cols for _, some in work for w in some), "weights")
    streams = Streams(graph, statistics.chunks, scratch=folder, chosen=chosen)
    try:
        for layer, weights in work:
            _Work(graph, layer, {w.address: tunable[w.address] for w in weights}, streams, store, jobs, progress).do()
    finally:
        streams.close()
    return store


def refuse_too_little(chunks: Sequence[Sequence[int]]) -> None:
    """Raises: UsageError for a text that says too little of any matrix."""
    n_tokens = sum(map(len, chunks))
    if n_tokens < LEAST_TOKENS:
        raise UsageError(f"tuning codes needs a text of at least {LEAST_TOKENS} tokens: this one has {n_tokens}")


def can_tune(weight: Weight, encoding: Encoding) -> bool:
    """Whether codes of a weight can be tuned: a matrix of a layer, whose source has no codes of its own."""
    return (
        weight.layer is not None
        and weight.role.trait in (Trait.MATRIX, Trait.EXPERTS)
        and isinstance(encoding, Tunable)
        and weight.view.stored_as is None
        and weight.view.grid is None
        and encoding.refusal(weight.view.n_cols) is None
    )


def _weights(layer: Layer, tunable: Mapping[Address, Tunable]) -> list[Weight]:
    return [w for w in layer.weights.values() if w.address in tunable and can_tune(w, tunable[w.address])]


@dataclass(frozen=True)
class _Work:
    """One layer."""

    graph: WeightGraph
    layer: Layer
    encodings: Mapping[Address, Tunable]
    streams: Streams
    store: Store
    jobs: int
    progress: Progress

    def do(self) -> None:
        is_done = self.layer.index in self.store.layers
        for branch in self.layer.branches:
            if not is_done:
                for stage in self.streams.stages(branch, self.layer):
                    wanted = tuple(address for address in stage if address in self.encodings)
                    if wanted:
                        self._tune(branch, wanted)
            self.streams.advance(branch, self.layer, quantised_layer(self.layer, self.store))
        if is_done:
            self.progress.advance(
                sum(view.n_rows * view.n_cols for view in (self._weight(each).view for each in self.encodings))
            )
        else:
            self.store.finish(self.layer.index)

    def _weight(self, address: Address) -> Weight:
        return self.layer.weights[address[0]]

    def _tune(self, branch: Branch, stage: Stage) -> None:
        """Tunes weights with the same inputs: slice by slice of a stack, or rows of the only one, on all workers."""
        moments = self._moments(branch, stage)
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
                tuner = Tuner.of(moments[0].settled())
                moments.clear()
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

    def _moments(self, branch: Branch, stage: Stage) -> dict[int, Moments]:
        """What each slice of the weights meets; of an expert that no token reaches nothing."""
        view = self._weight(stage[0]).view
        n_slices = view.shape[0] if len(view.shape) == 3 else 1
        found = {which: Moments(view.n_cols) for which in range(n_slices)}
        layer = quantised_layer(self.layer, self.store)
        for batch in self.streams.inputs(branch, self.layer, layer, stage):
            pieces = [
                (found[which], columns, x) for (_, which), x in batch.items() for columns in found[which].columns()
            ]
            self._each(lambda piece: piece[0].add_columns(piece[1], *piece[2]), pieces)
            for (_, which), x in batch.items():
                found[which].count(x.quantised)
        return found

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
        return [range(start, min(start + _ROWS, first + height)) for start in range(first, first + height, _ROWS)]

    def _rows(self, tuner: Tuner, address: Address, rows: range, file: Writing) -> _Errors:
        view = self._weight(address).view
        found = tuner.tune(self.encodings[address], view.rows(rows.start, rows.stop))
        file.put(rows.start, found.parts)
        self.progress.advance(len(rows) * view.n_cols)
        return address, float(found.stock.sum()), float(found.errors.sum())

    def _shape(self, address: Address) -> Shape:
        return self._weight(address).shape

    def _each(self, work: Callable[[_P], _T], pieces: Sequence[_P]) -> list[_T]:
        """What work gives for each piece, by several workers."""
        with SINGLE_BLAS, ThreadPoolExecutor(self.jobs, thread_name_prefix="tune") as pool:
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
