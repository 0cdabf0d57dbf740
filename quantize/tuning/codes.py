"""Codes of the rows of a matrix, chosen for what the matrix gives rather than for its elements.

1. What is wanted is the matrix that gives on the inputs it will have what the float matrix gives on its own:
   W + W D H⁻¹ (GPTAQ, arXiv 2504.02692).
2. The format's own search for scales gives its grid, weighed by the mean squares of the inputs.
3. Codes are chosen column by column, columns of large inputs first, and each error is fed into the columns that follow
   (GPTQ, arXiv 2210.17323, in the form of LDLQ, QuIP, arXiv 2307.13304).
4. Sweeps of coordinate descent change single codes, and scales and offsets of a run where the format stores them for it.

A row that this does not make better, by its error under H, stays as the format's encoder has it; so does one that comes
to lie so far from its weights that it could be taken for another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...graph.dtypes import Float32
from ..committed import Committed, Tunable
from ..encoding import Bytes
from ..encodings._kinds import FLOAT_KINDS
from .moments import WIDTH, Settled, Solver, solver

_SWEEPS = 4
# Of a row's distance from its weights over what the encoder leaves: what validation takes for the same row, with some room.
_FURTHEST = 3.0


@dataclass(frozen=True)
class Tuned:
    """Parts of rows, and the error of each row [n] under the moments: as the encoder leaves it, and as it is now."""

    parts: tuple[Bytes, ...]
    stock: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Tuner:
    """Tunes rows of matrices that have the same inputs."""

    settled: Settled
    solver: Solver

    @classmethod
    def of(cls, settled: Settled) -> Tuner:
        """For inputs with these moments."""
        return cls(settled, solver(settled.squares))

    def tune(self, encoding: Tunable, rows: Float32, start: int = 0) -> Tuned:
        """Codes for rows [n, n_cols] of a matrix from `start` on: a multiple of the encoding's tiles, or its last."""
        moments = self.settled.squares
        wanted = rows + self.solver.divide(self.settled.drift_of(rows, start))
        importance = np.diagonal(moments).copy()
        parts = encoding.encode(rows, importance)
        stock = _errors(encoding.decode(*parts) - wanted, moments)
        searched = encoding.refined().encode(wanted, importance)
        found = _owned(encoding.committed(*searched))
        grid = _Grid.of(encoding, found, rows.shape[1])
        self._feed_back(grid, wanted)
        self._descend(grid, wanted)
        tuned = encoding.recoded(searched, grid.found)
        errors = _errors(encoding.decode(*tuned) - wanted, moments)
        is_near = _is_near(encoding, rows, tuned)
        is_better = is_near & (errors < stock)
        if encoding.tile_rows > 1 and not is_better.all():  # rows that are stored together stay or go together
            is_better = np.full_like(is_better, is_near.all() and errors.sum() < stock.sum())
        kept = tuple(
            old if not is_better.any() else _chosen(is_better, new, old) for new, old in zip(tuned, parts, strict=True)
        )
        return Tuned(kept, stock, np.where(is_better, errors, stock))

    def _feed_back(self, grid: _Grid, wanted: Float32) -> None:
        from . import _kernels  # brings the compiler

        order, n_cols = self.solver.order, wanted.shape[1]
        ordered = np.ascontiguousarray(wanted[:, order])
        off = np.empty_like(ordered)
        for start in range(0, n_cols, WIDTH):
            block = slice(start, min(start + WIDTH, n_cols))
            sought = ordered[:, block] + off[:, :start] @ self.solver.feedback[:start, block]
            left = np.empty_like(sought)
            _kernels.feed_back(
                np.ascontiguousarray(ordered[:, block]),
                sought,
                np.ascontiguousarray(self.solver.feedback[block, block]),
                order[block],
                *grid.scaled,
                *grid.ranks,
                grid.found.codes,
                left,
            )
            off[:, block] = left

    def _descend(self, grid: _Grid, wanted: Float32) -> None:
        from . import _kernels  # brings the compiler

        moments = self.settled.squares
        values = grid.values()
        slopes: Float32 = np.matmul(values - wanted, moments)
        for _ in range(_SWEEPS):
            for start in range(0, wanted.shape[1], grid.width):
                block = slice(start, start + grid.width)
                here, moved = np.ascontiguousarray(values[:, block]), np.empty((len(values), grid.width), np.float32)
                _kernels.descend(
                    start,
                    np.ascontiguousarray(moments[block, block]),
                    np.ascontiguousarray(slopes[:, block]),
                    here,
                    moved,
                    *grid.scaled,
                    grid.has_offsets,
                    grid.kind,
                    grid.levels,
                    *grid.ranks,
                    grid.found.codes,
                )
                values[:, block] = here
                slopes += moved @ moments[block]


@dataclass(frozen=True)
class _Grid:
    """What kernels need of a committed grid: arrays of their own, all there. `kind` is negative where scales stay."""

    found: Committed
    has_offsets: bool
    levels: Float32
    ranks: tuple[Float32, bool, np.ndarray]
    scaled: tuple[int, Float32, Float32, Float32]
    kind: int
    width: int

    @classmethod
    def of(cls, encoding: Tunable, found: Committed, n_cols: int) -> _Grid:
        run = n_cols // found.scales.shape[1]
        levels = encoding.levels
        allowed, code_of = np.unique(levels, return_index=True)
        is_finite = np.isfinite(allowed)
        ranked, code_of = np.ascontiguousarray(allowed[is_finite]), code_of[is_finite].astype(np.uint8)
        nothing = np.zeros_like(found.scales)
        zeros, offsets = (nothing if each is None else each for each in (found.zeros, found.offsets))
        refits = encoding.refits is not None and run <= WIDTH
        return cls(
            found=found,
            has_offsets=found.offsets is not None,
            levels=np.nan_to_num(levels),
            ranks=(ranked, bool((np.diff(ranked) == 1).all()), code_of),
            scaled=(run, found.scales, zeros, offsets.copy() if found.offsets is None else offsets),
            kind=FLOAT_KINDS[encoding.refits] if encoding.refits is not None and refits else -1,
            width=_width(n_cols, run if refits else 1),
        )

    def values(self) -> Float32:
        """What the codes stand for, as kernels compute it."""
        run, scales, zeros, offsets = self.scaled
        n, n_cols = self.found.codes.shape
        values = self.levels[self.found.codes].reshape(n, -1, run)
        found: Float32 = (values - zeros[..., None]) * scales[..., None] + offsets[..., None]
        return found.reshape(n, n_cols)


def _width(n_cols: int, run: int) -> int:
    """Columns treated together: a divisor of all of them, whole runs, at most `WIDTH` unless a run is longer."""
    n_runs = n_cols // run
    return run * max(n for n in range(1, n_runs + 1) if n_runs % n == 0 and (n == 1 or n * run <= WIDTH))


def _owned(found: Committed) -> Committed:
    """Arrays that may be written to, as kernels take them."""
    return Committed(
        np.array(found.codes, np.uint8, order="C"),
        *(None if each is None else np.array(each, np.float32, order="C") for each in found[1:]),  # type: ignore[arg-type]
    )


def _is_near(encoding: Tunable, rows: Float32, parts: tuple[Bytes, ...]) -> np.ndarray:
    """Which rows [n] parts bring about as near to their weights as the encoder does."""
    found, usual = (
        np.square(encoding.decode(*each) - rows, dtype=np.float64).sum(axis=1)
        for each in (parts, encoding.encode(rows))
    )
    near: np.ndarray = found <= _FURTHEST**2 * usual
    return near


def _errors(off: Float32, moments: Float32) -> np.ndarray:
    """The error [n] of each row under the moments."""
    return np.einsum("ij,ij->i", off @ moments, off, dtype=np.float64)


def _chosen(is_better: np.ndarray, new: Bytes, old: Bytes) -> Bytes:
    if len(new) != len(is_better):  # of all rows together
        return new
    return np.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old).astype(new.dtype)
