"""Encoders of `--refine`: the same records as those of `_kernels_*`, filled with what `_refine` finds.

One function is compiled for all formats of a kind, since compiling the search takes ten seconds.
Arrays are as there: blocks [n, elements]; importance [blocks of a row, elements], or no rows for equal weights;
out [n, bytes].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import LANES, Lanes, Records, kernel, load_importance, store, store_half
from ._kernels_iq4 import half_scale, nearest_e2m1, pack_run, power
from ._pack import (
    pack_fifth_bits,
    pack_halves,
    pack_high_bits,
    pack_nibbles,
    pack_pairs,
    pack_q6,
    pack_scales_iq4,
    pack_scales_q3,
    pack_scales_q45,
)
from ._refine import TABLE, fit_ranged, fit_signed, ranged_levels, signed_levels
from ._search import ONE, ZERO
from ._tables import E2M1, IQ4
from ._vectors import load

Blocks = NDArray[np.float32]
# Format -> lowest and highest level, least and most of a run's scale, runs.
_SIGNED = {
    "Q4_0": (-8, 7, 1, 1, 1),
    "Q5_0": (-16, 15, 1, 1, 1),
    "Q8_0": (-127, 127, 1, 1, 1),
    "IQ4_NL": (TABLE, IQ4[-1], 1, 1, 1),
    "IQ4_XS": (TABLE, IQ4[-1], -32, 31, 8),
    "Q3_K": (-4, 3, -32, 31, 16),
    "Q6_K": (-32, 31, -128, 127, 16),
}
# Format -> highest level, least and most of a run's scale and minimum, runs.
_RANGED = {
    "Q4_1": (15, 1, 1, 1),
    "Q5_1": (31, 1, 1, 1),
    "Q2_K": (3, 0, 15, 16),
    "Q4_K": (15, 0, 63, 8),
    "Q5_K": (31, 0, 63, 8),
}


def refine(name: str, blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Fills the records of a format."""
    if name in _SIGNED:
        _refine_signed(blocks, importance, *_SIGNED[name], out)
    elif name in _RANGED:
        _refine_ranged(blocks, importance, *_RANGED[name], out)
    else:
        _refine_mxfp4(blocks, importance, out)


@kernel
def _load(blocks: Blocks, importance: Blocks, start: int, x: Lanes, w: Lanes) -> None:
    load(blocks, start, x)
    if len(importance):
        load_importance(importance, start, w)
    else:
        w[:] = ONE


@kernel
def _refine_signed(
    blocks: Blocks, importance: Blocks, low: int, high: int, least: int, most: int, n_runs: int, out: Records
) -> None:
    n = blocks.shape[1]
    x, w = np.empty((n, LANES), np.float32), np.empty((n, LANES), np.float32)
    scales, unit = np.empty((n_runs, LANES), np.float32), np.empty(LANES, np.float32)
    levels, records = np.empty((n, LANES), np.uint8), np.zeros((out.shape[1], LANES), np.uint8)
    unit_at = 0 if n == 32 or low == TABLE else out.shape[1] - 2
    for start in range(0, len(blocks), LANES):
        _load(blocks, importance, start, x, w)
        fit_signed(x, w, low, high, least, most, unit, scales)
        for i in range(LANES):
            store_half(unit[i], records, unit_at, i)
        if low == TABLE:
            _pack_table(x, unit, scales, records)
        else:
            _level_signed(x, unit, scales, low, high, levels)
            _pack_signed(levels, scales, low, records)
        store(records, start, out)


@kernel
def _level_signed(x: Lanes, unit: Lanes, scales: Lanes, low: int, high: int, levels: Records) -> None:
    """Levels from 0 on."""
    length = x.shape[0] // len(scales)
    scale, found = np.empty(LANES, np.float32), np.empty((length, LANES), np.float32)
    for run in range(len(scales)):
        for i in range(LANES):
            scale[i] = unit[i] * scales[run, i]
        signed_levels(x[length * run : length * (run + 1)], scale, low, high, found)
        for j in range(length):
            for i in range(LANES):
                levels[length * run + j, i] = np.uint8(np.int32(found[j, i]) - np.int32(low))


@kernel
def _pack_signed(levels: Records, scales: Lanes, low: int, records: Records) -> None:
    """Everything but the unit; the lowest level tells the formats apart."""
    if low == -8:
        pack_halves(levels, 2, records)
    elif low == -16:
        pack_fifth_bits(levels, 2, records)
        pack_halves(levels, 6, records)
    elif low == -127:
        records[2:] = levels - np.uint8(127)
    elif low == -4:
        pack_scales_q3(scales, records)
        pack_high_bits(levels, 2, 0, records)
        pack_pairs(levels, 32, records)
    else:
        pack_q6(levels, records)
        for run in range(16):
            for i in range(LANES):
                records[192 + run, i] = np.uint8(np.int32(scales[run, i]) & np.int32(255))


@kernel
def _pack_table(x: Lanes, unit: Lanes, scales: Lanes, records: Records) -> None:
    at = 2
    if len(scales) > 1:
        pack_scales_iq4(scales, records)
        at = 8
    inverse = np.empty(LANES, np.float32)
    for run in range(len(scales)):
        for i in range(LANES):
            scale = unit[i] * scales[run, i]
            inverse[i] = ZERO if scale == ZERO else ONE / scale
        pack_run(x[32 * run : 32 * run + 32], inverse, at + 16 * run, records)


@kernel
def _refine_ranged(
    blocks: Blocks, importance: Blocks, top: int, least: int, most: int, n_runs: int, out: Records
) -> None:
    n = blocks.shape[1]
    x, w = np.empty((n, LANES), np.float32), np.empty((n, LANES), np.float32)
    scales, units = np.empty((2, n_runs, LANES), np.float32), np.empty((2, LANES), np.float32)
    levels, records = np.empty((n, LANES), np.uint8), np.zeros((out.shape[1], LANES), np.uint8)
    units_at, sign = 80 if top == 3 else 0, -ONE if n == 32 else ONE
    for start in range(0, len(blocks), LANES):
        _load(blocks, importance, start, x, w)
        fit_ranged(x, w, top, least, most, units, scales)
        for i in range(LANES):
            store_half(units[0, i], records, units_at, i)
            store_half(sign * units[1, i], records, units_at + 2, i)
        _level_ranged(x, units, scales, top, levels)
        _pack_ranged(levels, scales, top, records)
        store(records, start, out)


@kernel
def _level_ranged(x: Lanes, units: Lanes, scales: Lanes, top: int, levels: Records) -> None:
    n_runs = scales.shape[1]
    length = x.shape[0] // n_runs
    scale, minimum = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found = np.empty((length, LANES), np.float32)
    for run in range(n_runs):
        for i in range(LANES):
            scale[i], minimum[i] = units[0, i] * scales[0, run, i], units[1, i] * scales[1, run, i]
        ranged_levels(x[length * run : length * (run + 1)], scale, minimum, top, found)
        for j in range(length):
            for i in range(LANES):
                levels[length * run + j, i] = np.uint8(found[j, i])


@kernel
def _pack_ranged(levels: Records, scales: Lanes, top: int, records: Records) -> None:
    """Everything but the units; the highest level and the number of elements tell the formats apart."""
    if top == 3:
        for run in range(16):
            for i in range(LANES):
                records[run, i] = np.uint8(scales[0, run, i]) | (np.uint8(scales[1, run, i]) << np.uint8(4))
        pack_pairs(levels, 16, records)
    elif len(levels) == 32:
        if top == 31:
            pack_fifth_bits(levels, 4, records)
        pack_halves(levels, 4 if top == 15 else 8, records)
    else:
        pack_scales_q45(scales, records)
        if top == 31:
            pack_high_bits(levels, 4, 16, records)
        pack_nibbles(levels, 16 if top == 15 else 48, records)


@kernel
def _refine_mxfp4(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """The power of two of least error, of that which ggml takes and its neighbours."""
    codes, best = np.empty(32, np.uint8), np.empty(32, np.uint8)
    for b in range(len(blocks)):
        usual, least = power(blocks[b]), np.float32(np.inf)
        for shift in (0, -1, 1):
            exponent = min(max(usual + np.int32(shift), np.int32(0)), np.int32(254))
            step, error = half_scale(exponent), ZERO
            for j in range(32):
                codes[j] = nearest_e2m1(blocks[b, j], step)
                off = np.float32(E2M1[codes[j] & np.uint8(7)]) * step - abs(blocks[b, j])
                error += off * off * (importance[b % len(importance), j] if len(importance) else ONE)
            if shift == 0 or error < least:
                least, best[:], out[b, 0] = error, codes, np.uint8(exponent)
        for j in range(16):
            out[b, 1 + j] = best[j] | (best[16 + j] << np.uint8(4))
