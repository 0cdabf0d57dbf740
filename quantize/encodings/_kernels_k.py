"""Encoders of the K formats: 256 elements in runs of 16 or 32, `LANES` blocks side by side.

Each writes the record that its format's file describes, byte by byte, as columns of an array [bytes, LANES].
Arguments of every kernel: blocks [n, 256]; importance [blocks of a row, 256], or no rows for none; out [n, bytes].
Source: llama.cpp `ggml/src/ggml-quants.c`, `quantize_row_*_K_ref` and `quantize_row_*_K_impl`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import LANES, Records, kernel, load_importance, store, store_half
from ._pack import pack_high_bits, pack_nibbles, pack_pairs, pack_q6, pack_scales_q3, pack_scales_q45
from ._runs import (
    found_levels,
    level_ranged,
    level_signed,
    quantize_by_largest,
    quantize_scales,
    sum_over,
    weigh,
    weigh_by_spread,
    weigh_by_square,
)
from ._search import MINIMUM, SCALE, TINY, ZERO, search_cubic, search_ranged, search_signed
from ._vectors import empty_lanes, load

Blocks = NDArray[np.float32]
_BLOCK = 256
_ONE, _TWO = np.float32(1), np.float32(2)


@kernel
def encode_q4_k(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Runs of 32 with levels 0 … 15."""
    levels, records = np.empty((_BLOCK, LANES), np.uint8), np.empty((144, LANES), np.uint8)
    for start in range(0, len(blocks), LANES):
        _fit_runs_of_32(blocks, importance, start, 15, -1.0, 20, levels, records)
        pack_nibbles(levels, 16, records)
        store(records, start, out)


@kernel
def encode_q5_k(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Runs of 32 with levels 0 … 31."""
    levels, records = np.empty((_BLOCK, LANES), np.uint8), np.empty((176, LANES), np.uint8)
    for start in range(0, len(blocks), LANES):
        _fit_runs_of_32(blocks, importance, start, 31, -0.5, 15, levels, records)
        pack_high_bits(levels, 4, 16, records)
        pack_nibbles(levels, 48, records)
        store(records, start, out)


@kernel
def _fit_runs_of_32(
    blocks: Blocks, importance: Blocks, start: int, top: int, first: float, trials: int, levels: Records, out: Records
) -> None:
    """Levels of the blocks from start on, and the first 16 bytes of their records."""
    x, w = empty_lanes(_BLOCK, LANES), empty_lanes(_BLOCK, LANES)
    found, values = np.empty((8, 4, LANES), np.float32), np.empty((2, 8, LANES), np.float32)
    total, units = np.empty((8, LANES), np.float32), np.empty((2, LANES), np.float32)
    weighted = len(importance) > 0
    load(blocks, start, x)
    if weighted:
        load_importance(importance, start, w)
        weigh(x, _TWO, w)
    else:
        weigh_by_spread(x, w)
    for run in range(8):
        at = slice(32 * run, 32 * run + 32)
        if weighted:
            search_ranged(x[at], w[at], top, -0.9, 0.05, 36, False, found[run])
        else:
            search_ranged(x[at], w[at], top, first, 0.1, trials, False, found[run])
        values[0, run], values[1, run] = found[run, SCALE], found[run, MINIMUM]
        sum_over(w[at], total[run])
    for which in range(2):
        quantize_scales(values[which], total, 63, weighted, units[which])
        for i in range(LANES):
            units[which, i] = store_half(units[which, i], out, 2 * which, i)
    level_ranged(x, found, values, units, top, levels)
    pack_scales_q45(values, out)


@kernel
def encode_q2_k(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Runs of 16 with levels 0 … 3."""
    x, w = empty_lanes(_BLOCK, LANES), empty_lanes(_BLOCK, LANES)
    found, values = np.empty((16, 4, LANES), np.float32), np.empty((2, 16, LANES), np.float32)
    total, units = np.empty((16, LANES), np.float32), np.empty((2, LANES), np.float32)
    levels, records = np.empty((_BLOCK, LANES), np.uint8), np.empty((84, LANES), np.uint8)
    weighted = len(importance) > 0
    for start in range(0, len(blocks), LANES):
        load(blocks, start, x)
        if weighted:
            load_importance(importance, start, w)
            weigh(x, _ONE, w)
        else:
            w[:] = np.abs(x)
        for run in range(16):
            at = slice(16 * run, 16 * run + 16)
            if weighted:
                search_ranged(x[at], w[at], 3, -0.9, 0.05, 36, False, found[run])
            else:
                search_ranged(x[at], w[at], 3, -0.5, 0.1, 15, True, found[run])
            values[0, run], values[1, run] = found[run, SCALE], found[run, MINIMUM]
            sum_over(w[at], total[run])
        for which in range(2):
            quantize_scales(values[which], total, 15, weighted, units[which])
            for i in range(LANES):
                units[which, i] = store_half(units[which, i], records, 80 + 2 * which, i)
        level_ranged(x, found, values, units, 3, levels)
        for run in range(16):
            for i in range(LANES):
                records[run, i] = np.uint8(values[0, run, i]) | (np.uint8(values[1, run, i]) << np.uint8(4))
        pack_pairs(levels, 16, records)
        store(records, start, out)


@kernel
def encode_q3_k(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Runs of 16 with levels -4 … 3."""
    x, w = empty_lanes(_BLOCK, LANES), empty_lanes(_BLOCK, LANES)
    scales, total = np.empty((16, LANES), np.float32), np.empty((16, LANES), np.float32)
    found, kept = np.empty((2, LANES), np.float32), empty_lanes(_BLOCK, LANES)
    levels, records = np.empty((_BLOCK, LANES), np.uint8), np.empty((110, LANES), np.uint8)
    unit = np.empty(LANES, np.float32)
    weighted = len(importance) > 0
    for start in range(0, len(blocks), LANES):
        load(blocks, start, x)
        if weighted:
            load_importance(importance, start, w)
            weigh(x, _TWO, w)
        for run in range(16):
            at = slice(16 * run, 16 * run + 16)
            if weighted:
                search_signed(x[at], w[at], 4, found)
                found_levels(x[at], found, 4, kept[at])
                scales[run] = found[SCALE]
                sum_over(w[at], total[run])
            else:
                search_cubic(x[at], 4, kept[at], scales[run])
        if weighted:
            search_signed(scales, total, 32, found)
            found_levels(scales, found, 32, scales)
            unit[:] = found[SCALE]
        else:
            quantize_by_largest(scales, 32, ZERO, unit)
        for i in range(LANES):
            unit[i] = store_half(unit[i], records, 108, i)
        level_signed(x, kept, scales, unit, 4, levels)
        pack_scales_q3(scales, records)
        pack_high_bits(levels, 2, 0, records)
        pack_pairs(levels, 32, records)
        store(records, start, out)


@kernel
def encode_q6_k(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Runs of 16 with levels -32 … 31."""
    x, w = empty_lanes(_BLOCK, LANES), empty_lanes(_BLOCK, LANES)
    scales, unit = np.empty((16, LANES), np.float32), np.empty(LANES, np.float32)
    found, kept = np.empty((2, LANES), np.float32), empty_lanes(_BLOCK, LANES)
    levels, records = np.empty((_BLOCK, LANES), np.uint8), np.empty((210, LANES), np.uint8)
    for start in range(0, len(blocks), LANES):
        load(blocks, start, x)
        if len(importance):
            load_importance(importance, start, w)
        else:
            weigh_by_square(x, w)
        for run in range(16):
            at = slice(16 * run, 16 * run + 16)
            search_signed(x[at], w[at], 32, found)
            found_levels(x[at], found, 32, kept[at])
            scales[run] = found[SCALE]
        quantize_by_largest(scales, 128, TINY, unit)
        for i in range(LANES):
            if unit[i] == ZERO:  # an empty block is all zero bytes
                scales[:, i], kept[:, i] = ZERO, -np.float32(32)
            unit[i] = store_half(unit[i], records, 208, i)
        level_signed(x, kept, scales, unit, 32, levels)
        for run in range(16):
            for i in range(LANES):
                records[192 + run, i] = np.uint8(np.int32(scales[run, i]))
        pack_q6(levels, records)
        store(records, start, out)
