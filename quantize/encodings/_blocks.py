"""What GGUF's block formats share: one record a block, a row is its records end to end.

Encoding is compiled (`_kernels_*.py`) and gives the bits of ggml's reference: float32 arithmetic in C's order.
Source: llama.cpp `ggml/src/ggml-quants.c`, `ggml/src/ggml-common.h`.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ...graph.errors import InputError, needs_extra
from ...graph.grid import Grid, GridRows
from ..committed import Committed, Tunable, integer_levels
from ..encoding import Bytes, Part
from ..grids import OnGrid

Levels = NDArray[np.uint8]
Records = NDArray[Any]

# Beyond this, squares of squares of a search could overflow, and no scale of float16 reaches it.
_LARGEST_SEARCHED = 1e9
# Of each byte in a word of four: its low half, its low six bits, and where its top two go, shifted by two.
_LOW_HALVES, _LOW_SIXES, _TOP_PAIRS = np.uint32(0x0F0F0F0F), np.uint32(0x3F3F3F3F), np.uint32(0x30303030)
# A run with a larger share of its squares wrong is not what it was: of one that became zeros all are.
_LOST = 0.75


class BlockEncoding(Tunable):
    """Blocks of `block` elements, each stored as one `layout` record.

    `module` holds the compiled encoder; `searches` if it looks for scales by their error; `halves` are the
    layout's float16 fields; `run` elements share a scale. Levels have `level_bits` and `zero` is subtracted from them,
    unless a `table` says what they stand for.

    Refined, it keeps ggml's bytes of a block only where a longer search does not lower its squared error.
    """

    can_refine = True
    weighs_columns = True
    layout: ClassVar[np.dtype[Any]]
    module: ClassVar[str]
    searches: ClassVar[bool] = False
    halves: ClassVar[tuple[str, ...]] = ("d",)
    run: ClassVar[int] = 32
    level_bits: ClassVar[int] = 4
    zero: ClassVar[int | None] = None
    table: ClassVar[Float32 | None] = None

    @property
    def levels(self) -> Float32:
        return integer_levels(self.level_bits, zero=self.zero or 0) if self.table is None else self.table

    def committed(self, *parts: Bytes) -> Committed:
        n, records = len(parts[0]), self._stored_records(parts[0])
        scales, offsets = self._runs(records)
        return Committed(
            self._levels(records).reshape(n, -1),
            scales.reshape(n, -1),
            offsets=None if offsets is None else offsets.reshape(n, -1),
        )

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        records = self._stored_records(parts[0]).copy()
        self._set_levels(records, found.codes.reshape(-1, self.block))
        return (records.view(np.uint8).reshape(parts[0].shape),)

    @property
    def activation_block(self) -> int:
        return self.block

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        n_bytes = n_cols // self.block * self.layout.itemsize
        return (Part("blocks", np.dtype(np.uint8), (n_bytes,)),)

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`.

        Raises: InputError if a scale is beyond float16 (±65504); BackendError if the compiler is not installed.
        """
        blocks = self._blocks(rows)
        if (self.searches or importance is not None) and blocks.size:
            self._refuse(max(blocks.max(), -blocks.min()) > _LARGEST_SEARCHED)
        weights = self._blocks(np.empty(0, np.float32) if importance is None else importance)
        out = self._records(blocks, weights)
        if not weights.all():
            self._recover(blocks, weights, out)
        records = out.view(self.layout)
        self._refuse(not all(np.isfinite(records[field]).all() for field in self.halves))
        if self.is_refined:
            self._refine(blocks, weights, out)
        return (out.reshape(len(rows), self.parts(rows.shape[1])[0].row_nbytes),)

    def _records(self, blocks: Float32, weights: Float32) -> Levels:
        """ggml's record [n, bytes] of each block."""
        out = np.empty((len(blocks), self.layout.itemsize), np.uint8)
        _kernel(self.module, self.stored_name)(blocks, weights, out)
        return out

    def _recover(self, blocks: Float32, weights: Float32, out: Levels) -> None:
        """Encodes rows anew in which a run was lost because its columns have an importance of zero.

        ggml weighs such columns by nothing; where none of a run counts it stores a scale of zero, and the run is
        gone. There, and only there, all columns of the run count as much as the row's others do on average. Rows
        are told apart one by one, so that their bytes do not depend on those encoded beside them.
        """
        lost = self._lost_runs(blocks, weights, out)
        if not lost.any():
            return
        by_row, out_by_row = blocks.reshape(len(lost), len(weights), -1), out.reshape(len(lost), len(weights), -1)
        counted = weights[weights > 0]
        usual = np.float32(math.fsum(counted) / len(counted)) if len(counted) else np.float32(1)
        rows = np.flatnonzero(lost.any(axis=1))
        patterns, which = np.unique(lost[rows], axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            alike = rows[which.ravel() == number]
            filled = weights.reshape(-1, self.run).copy()
            filled[pattern] = usual
            found = self._records(self._blocks(by_row[alike]), filled.reshape(weights.shape))
            out_by_row[alike] = found.reshape(len(alike), len(weights), -1)

    def _lost_runs(self, blocks: Float32, weights: Float32, stored: Levels) -> NDArray[np.bool_]:
        """Which of a row's runs [rows, runs] have columns of no importance and are lost, but would not be without any.

        Some are too small for their block's scale anyhow: those are not meant.
        """
        has_zero = (weights == 0).reshape(-1, self.run).any(axis=1)
        lost = self._lost(blocks, stored, len(has_zero)) & has_zero
        rows = np.flatnonzero(lost.any(axis=1))
        if len(rows):
            those = self._blocks(blocks.reshape(len(lost), -1)[rows])
            lost[rows] &= ~self._lost(those, self._records(those, weights[:0]), len(has_zero))
        return lost

    def _lost(self, blocks: Float32, stored: Levels, n_runs: int) -> NDArray[np.bool_]:
        """Which of a row's runs [rows, runs] are off by most of what they hold, or are no numbers."""
        with np.errstate(invalid="ignore", over="ignore"):
            values = self._decode(stored.reshape(-1).view(self.layout)).reshape(-1, n_runs, self.run)
            runs = blocks.reshape(values.shape)
            held = np.square(runs, dtype=np.float64).sum(axis=-1)
            off = np.square(values - runs, dtype=np.float64).sum(axis=-1)
            lost: NDArray[np.bool_] = ~(off <= _LOST * held)
        return lost

    def _refine(self, blocks: Float32, weights: Float32, exact: Levels) -> None:
        """Replaces records whose values, as a reader computes them, are farther from the blocks than those found."""
        found = np.empty_like(exact)
        from ._kernels_refined import refine  # brings the compiler

        refine(self.stored_name, blocks, weights, found)
        better = self._errors(blocks, weights, found) < self._errors(blocks, weights, exact)
        if not weights.all():
            better &= ~self._lost_runs(blocks, weights, found).reshape(len(blocks), -1).any(axis=1)
        exact[better] = found[better]

    def _errors(self, blocks: Float32, weights: Float32, stored: Levels) -> NDArray[np.float64]:
        """The squared error [n] of each record, weighted if there are weights."""
        with np.errstate(invalid="ignore", over="ignore"):  # what was found may be beyond float16: NaN is not better
            values = self._decode(stored.reshape(-1).view(self.layout)).reshape(blocks.shape)
            off = np.subtract(values, blocks, dtype=np.float64)
            np.square(off, out=off)
            if len(weights):
                off.reshape(-1, *weights.shape)[:] *= weights
            total: NDArray[np.float64] = off.sum(axis=1)
        return total

    def decode(self, *parts: Bytes) -> Float32:
        (stored,) = parts
        n_cols = stored.shape[1] // self.layout.itemsize * self.block
        return self._decode(self._stored_records(stored)).reshape(len(stored), n_cols)

    def _decode(self, records: Records) -> Float32:
        """Values [n, runs, run] of records [n]."""
        scales, offsets = self._runs(records)
        levels = self._levels(records).reshape(*scales.shape, self.run)
        offset = None if offsets is None else offsets[..., None]
        if self.table is not None:
            return to_values(self.table[levels], scales[..., None], offset)
        return to_values(levels, scales[..., None], offset, zero=self.zero)

    @abstractmethod
    def _levels(self, records: Records) -> Levels:
        """Levels [n, block] of records [n] as unsigned numbers."""

    @abstractmethod
    def _set_levels(self, records: Records, levels: Levels) -> None:
        """Inverse of `_levels`."""

    @abstractmethod
    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        """What levels of each run are multiplied by, and what is added then: [n, runs]."""

    def _stored_records(self, stored: Bytes) -> Records:
        return np.ascontiguousarray(stored).reshape(-1).view(self.layout)

    def _blocks(self, rows: Float32) -> Float32:
        # numba compiles anew for arrays that are read-only or laid out otherwise
        return np.require(rows, np.float32, ["C", "A", "W"]).reshape(-1, self.block)

    def _refuse(self, is_too_large: bool) -> None:
        if is_too_large:
            raise InputError(f"a block's scale is beyond what {self.name} holds: choose a wider encoding")


class GridBlock(OnGrid, BlockEncoding):
    """Blocks of levels with a float16 scale `d`, and a zero point in common or, without one, a float16 minimum `m`."""

    @property
    def grid(self) -> Grid:
        has_offsets = self.zero is None
        return Grid(bits=self.level_bits, group=self.block, scales=DType.F16, zero=self.zero, has_offsets=has_offsets)

    def to_grid(self, *parts: Bytes) -> GridRows:
        (stored,) = parts
        n, records = len(stored), self._stored_records(stored)
        scales = records["d"].astype(np.float32).reshape(n, -1)
        shifts = records["m"].astype(np.float32) if self.zero is None else np.full_like(scales, self.zero)
        return GridRows(self._levels(records).reshape(n, -1), scales, shifts.reshape(n, -1))

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        records = np.empty(rows.scales.size, self.layout)
        records["d"] = rows.scales.reshape(-1)
        if self.zero is None:
            records["m"] = rows.shifts.reshape(-1)
        self._set_levels(records, rows.codes.reshape(-1, self.block))
        return (records.view(np.uint8).reshape(len(rows.codes), -1),)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        return column(records["d"]), column(records["m"]) if self.zero is None else None


@cache
def _kernel(module: str, name: str) -> Callable[[Float32, Float32, Levels], None]:
    with needs_extra("gguf", f"encoding {name}"):
        found = importlib.import_module(f".{module}", __package__)
    kernel: Callable[[Float32, Float32, Levels], None] = getattr(found, f"encode_{name.lower()}")
    return kernel


def column(values: NDArray[Any]) -> Float32:
    """[n] as float32 [n, 1], to multiply blocks with."""
    return values.astype(np.float32)[:, None]


def to_values(
    levels: NDArray[Any], scale: Float32, offset: Float32 | None = None, *, zero: float | Float32 | None = None
) -> Float32:
    """(levels - zero) * scale + offset; all broadcast. One array of floats is made: more of them cost more than they
    compute.
    """
    values: Float32 = levels.astype(np.float32)
    if zero is not None:
        values -= np.float32(zero)
    values *= scale
    if offset is not None:
        values += offset
    return values


def unpack_nibbles(packed: Levels) -> Levels:
    """Levels [n, …, 32] of bytes [n, …, 16]: byte j holds element j in its low half, element 16 + j in its high half."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def pack_nibbles(levels: Levels) -> Levels:
    """Inverse of `unpack_nibbles` for levels [n, 32]; bits above the fourth are left out."""
    low = levels & np.uint8(15)
    return low[:, :16] | (low[:, 16:] << np.uint8(4))


def pack_fifth_bits(levels: Levels) -> Levels:
    """Inverse of `unpack_fifth_bits`: bit 4 of each level."""
    return np.packbits(levels >> np.uint8(4), axis=1, bitorder="little")


def unpack_fifth_bits(packed: Levels) -> Levels:
    """Bit 4 of levels [n, 32], 0 or 16 each, of bytes [n, 4]: element j is bit j of the little-endian word."""
    bits: Levels = np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)
    return bits


def unpack_pairs(packed: Levels) -> Levels:
    """Two-bit levels [n, 256] of bytes [n, 64]: of 128 elements, j + 32 k is in byte j from bit 2 k on."""
    parts = packed.reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (parts & np.uint8(3)).reshape(-1, 256)


def pack_pairs(levels: Levels) -> Levels:
    """Inverse of `unpack_pairs`; bits above the second are left out."""
    parts = (levels.reshape(-1, 2, 4, 32) & np.uint8(3)) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    packed: Levels = np.bitwise_or.reduce(parts, axis=2)
    return packed.reshape(-1, 64)


def unpack_halves(packed: Levels) -> Levels:
    """Four-bit levels [n, 256] of bytes [n, 4, 32]: of 64 elements, the first 32 in the low halves."""
    levels = np.empty((len(packed), 4, 2, 32), np.uint8)
    np.bitwise_and(packed, np.uint8(15), out=levels[:, :, 0])
    np.right_shift(packed, np.uint8(4), out=levels[:, :, 1])
    return levels.reshape(-1, 256)


def pack_halves(levels: Levels) -> Levels:
    """Inverse of `unpack_halves`; bits above the fourth are left out."""
    halves = levels.reshape(-1, 4, 2, 32) & np.uint8(15)
    return halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))


def unpack_high_bits(packed: Levels) -> Levels:
    """Bits [n, 256], 0 or 1 each, of bytes [n, 32]: element j + 32 k is bit k of byte j."""
    return np.unpackbits(packed[:, None], axis=1, bitorder="little").reshape(-1, 256)


def pack_high_bits(bits: Levels) -> Levels:
    """Inverse of `unpack_high_bits`: of each level the lowest bit."""
    return np.packbits(bits.reshape(-1, 8, 32) & np.uint8(1), axis=1, bitorder="little")[:, 0]


def unpack_sixes(packed: Levels) -> tuple[Float32, Float32]:
    """Six-bit scales and minima [n, 8] of the 12 bytes in which Q4_K and Q5_K have them."""
    early, late, rest = np.ascontiguousarray(packed).view("<u4").T  # four bytes at a time, each by itself
    scales, minima = np.empty((2, len(packed), 2), "<u4")
    scales[:, 0], minima[:, 0] = early & _LOW_SIXES, late & _LOW_SIXES
    scales[:, 1] = (rest & _LOW_HALVES) | ((early >> np.uint32(2)) & _TOP_PAIRS)
    minima[:, 1] = ((rest >> np.uint32(4)) & _LOW_HALVES) | ((late >> np.uint32(2)) & _TOP_PAIRS)
    return scales.view(np.uint8).astype(np.float32), minima.view(np.uint8).astype(np.float32)
