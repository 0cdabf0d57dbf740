"""Blocks of 256 whose runs have scales, and in some formats minima, that count in units `d` and `dmin` of the block.

Source: llama.cpp `ggml/src/ggml-common.h`, `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ..committed import Committed, Counts
from ..encoding import Bytes
from ._blocks import BlockEncoding, Levels, Records, column

Counted = NDArray[np.int16]

# Of each byte in a word of four: its low half, its low six bits, and where its top two go, shifted by two.
_LOW_HALVES, _LOW_SIXES, _TOP_PAIRS = np.uint32(0x0F0F0F0F), np.uint32(0x3F3F3F3F), np.uint32(0x30303030)


class SuperBlock(BlockEncoding):
    """Blocks of 256; `counted` says how far scales and minima of runs count."""

    block = 256
    counted: ClassVar[Counts]

    @property
    def counts(self) -> Counts:
        return self.counted

    def committed(self, *parts: Bytes) -> Committed:
        found, records = super().committed(*parts), self._stored_records(parts[0])
        units = [records[name].astype(np.float32).reshape(len(parts[0]), -1) for name in self.halves]
        return found._replace(units=units[0], offset_units=units[1] if len(units) > 1 else None)

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        (stored,) = super().recoded(parts, found)
        records = self._stored_records(stored)
        before = self._counts(records)
        scales = _counted(found.scales, found.units, before[0])
        minima = np.zeros_like(scales)
        if found.offsets is not None:
            minima = _counted(-found.offsets, found.offset_units, before[1])
        self._set_counts(records, scales, minima)
        for name, units in zip(self.halves, (found.units, found.offset_units), strict=False):
            if units is not None:
                records[name] = units.reshape(-1)
        return (stored,)

    def _runs(self, records: Records) -> tuple[Float32, Float32 | None]:
        scales, minima = self._counts(records)
        offsets = None if minima is None else -(minima * column(records["dmin"]))
        return scales * column(records["d"]), offsets

    @abstractmethod
    def _counts(self, records: Records) -> tuple[Float32, Float32 | None]:
        """Scales and minima of records [n] in their units: [n, runs]."""

    @abstractmethod
    def _set_counts(self, records: Records, scales: Counted, minima: Counted) -> None:
        """Inverse of `_counts`; minima are zeros in formats without them."""


def _counted(values: Float32, units: Float32 | None, before: Float32 | None) -> Counted:
    """How often units [rows, blocks] go into values [rows, runs], as records [n] have it: [n, runs of a block]; where a
    unit is zero, as it was `before`.
    """
    if units is None or before is None:
        raise ValueError("scales that count have units")
    of_blocks = values.reshape(before.shape)
    unit = units.reshape(-1, 1)
    counts = np.divide(of_blocks, unit, out=before.copy(), where=unit != 0)
    return np.rint(counts).astype(np.int16)


def unpack_sixes(packed: Levels) -> tuple[Float32, Float32]:
    """Six-bit scales and minima [n, 8] of the 12 bytes in which Q4_K and Q5_K have them."""
    early, late, rest = np.ascontiguousarray(packed).view("<u4").T  # four bytes at a time, each by itself
    scales, minima = np.empty((2, len(packed), 2), "<u4")
    scales[:, 0], minima[:, 0] = early & _LOW_SIXES, late & _LOW_SIXES
    scales[:, 1] = (rest & _LOW_HALVES) | ((early >> np.uint32(2)) & _TOP_PAIRS)
    minima[:, 1] = ((rest >> np.uint32(4)) & _LOW_HALVES) | ((late >> np.uint32(2)) & _TOP_PAIRS)
    return scales.view(np.uint8).astype(np.float32), minima.view(np.uint8).astype(np.float32)


def pack_sixes(scales: Counted, minima: Counted) -> Levels:
    """Inverse of `unpack_sixes`."""
    heads = [(each[:, :4] & 63) | ((each[:, 4:] >> 4) << 6) for each in (scales, minima)]
    return np.concatenate([*heads, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)], axis=1).astype(np.uint8)


def unpack_threes(packed: Levels) -> Float32:
    """Six-bit scales [n, 16] of the 12 bytes in which Q3_K has them, from -32 on."""
    low, high = packed[:, :8], packed[:, 8:]
    fours = np.concatenate([low & 15, low >> 4], axis=1)
    twos = (high[:, None] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    found: Float32 = (fours | (twos.reshape(-1, 16) << 4)).astype(np.float32) - 32
    return found


def pack_threes(scales: Counted) -> Levels:
    """Inverse of `unpack_threes`."""
    raised = (scales + 32).astype(np.uint8)
    low = (raised[:, :8] & 15) | ((raised[:, 8:] & 15) << 4)
    twos = (raised >> 4).reshape(-1, 4, 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.concatenate([low, np.bitwise_or.reduce(twos, axis=1)], axis=1).astype(np.uint8)
