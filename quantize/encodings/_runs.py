"""Steps between the search for a block's scales and its record, for `LANES` blocks side by side.

Shapes: x and weights w are [elements, LANES]; scales of runs are [runs, LANES]; units are [LANES].
Source: llama.cpp `ggml/src/ggml-quants.c`, `quantize_row_*_K_ref` and `quantize_row_*_K_impl`.
"""

from __future__ import annotations

import numpy as np

from ._jit import LANES, Lanes, Records, kernel, level, nearest
from ._search import BASE, INVERSE, ONE, ZERO, find_extreme, search_positive


@kernel
def weigh_by_square(x: Lanes, w: Lanes) -> None:
    """Weights x²."""
    for j in range(x.shape[0]):
        for i in range(LANES):
            w[j, i] = x[j, i] * x[j, i]


@kernel
def weigh(x: Lanes, factor: np.float32, w: Lanes) -> None:
    """Turns importance w into weights, importance · √(factor · mean square of the block + x²)."""
    spread = np.zeros(LANES, np.float32)
    for j in range(x.shape[0]):
        for i in range(LANES):
            spread[i] += x[j, i] * x[j, i]
    for i in range(LANES):
        spread[i] = factor * spread[i] / np.float32(x.shape[0])
    for j in range(x.shape[0]):
        for i in range(LANES):
            w[j, i] *= np.sqrt(spread[i] + x[j, i] * x[j, i])


@kernel
def weigh_by_spread(x: Lanes, w: Lanes) -> None:
    """Weights |x| + root mean square of the run of 32."""
    spread = np.empty(LANES, np.float32)
    for run in range(0, x.shape[0], 32):
        spread[:] = ZERO
        for j in range(run, run + 32):
            for i in range(LANES):
                spread[i] += x[j, i] * x[j, i]
        for i in range(LANES):
            spread[i] = np.sqrt(spread[i] / np.float32(32))
        for j in range(run, run + 32):
            for i in range(LANES):
                w[j, i] = spread[i] + abs(x[j, i])


@kernel
def sum_over(w: Lanes, total: Lanes) -> None:
    """Sums over the elements, in order."""
    total[:] = ZERO
    for j in range(w.shape[0]):
        for i in range(LANES):
            total[i] += w[j, i]


@kernel
def quantize_scales(values: Lanes, total: Lanes, top: int, weighted: bool, unit: Lanes) -> None:
    """Replaces the scales [runs, LANES] of runs, or their minima, by levels 0 … top; their unit, as float16 holds it."""
    if weighted:
        levels = np.empty_like(values)
        search_positive(values, total, top, levels, unit)
        values[:] = levels
        return
    unit[:] = ZERO
    for run in range(values.shape[0]):
        for i in range(LANES):
            unit[i] = values[run, i] if values[run, i] > unit[i] else unit[i]
    for run in range(values.shape[0]):
        for i in range(LANES):
            inverse = np.float32(top) / unit[i] if unit[i] > ZERO else ZERO
            byte = nearest(inverse * values[run, i]) & np.int32(255)
            values[run, i] = np.float32(min(np.int32(top), byte))
    for i in range(LANES):
        unit[i] /= np.float32(top)


@kernel
def quantize_by_largest(scales: Lanes, top: int, least: np.float32, unit: Lanes) -> None:
    """Replaces scales of runs by levels -top … top - 1, of which the largest is -top; their unit.

    If all are zero or below `least`, levels are -top and the unit 0.
    """
    find_extreme(scales, unit)
    for run in range(scales.shape[0]):
        for i in range(LANES):
            byte = level(-np.float32(top) / unit[i] * scales[run, i], np.int32(-top), np.int32(top - 1))
            scales[run, i] = -np.float32(top) if abs(unit[i]) < least or unit[i] == ZERO else np.float32(byte)
    for i in range(LANES):
        unit[i] = ZERO if abs(unit[i]) < least or unit[i] == ZERO else ONE / (-np.float32(top) / unit[i])


@kernel
def level_ranged(x: Lanes, found: Lanes, values: Lanes, units: Lanes, top: int, levels: Records) -> None:
    """Levels by the stored scales and minima; those of the search, found, where the stored scale is zero.

    Shapes: values [2, runs, LANES] are levels of scales and minima, units [2, LANES] what they count in.
    """
    n_runs = values.shape[1]
    length, low, high = x.shape[0] // n_runs, np.int32(0), np.int32(top)
    for run in range(n_runs):
        fit = found[run]
        for j in range(length * run, length * (run + 1)):
            for i in range(LANES):
                scale, minimum = units[0, i] * values[0, run, i], units[1, i] * values[1, run, i]
                searched = fit[INVERSE, i] * (x[j, i] - fit[BASE, i])
                stored = (x[j, i] + minimum) / scale
                levels[j, i] = np.uint8(level(searched if scale == ZERO else stored, low, high))


@kernel
def level_signed(x: Lanes, kept: Lanes, scales: Lanes, unit: Lanes, top: int, levels: Records) -> None:
    """Levels plus top by the stored scales; those of the search, kept, where the stored scale is zero."""
    length, low, high = x.shape[0] // scales.shape[0], np.int32(-top), np.int32(top - 1)
    for run in range(scales.shape[0]):
        for j in range(length * run, length * (run + 1)):
            for i in range(LANES):
                scale = unit[i] * scales[run, i]
                q = np.int32(kept[j, i]) if scale == ZERO else level(x[j, i] / scale, low, high)
                levels[j, i] = np.uint8(q + np.int32(top))


@kernel
def found_levels(x: Lanes, found: Lanes, top: int, levels: Lanes) -> None:
    """The levels that go with a signed search's scale; -top for a run of zeros."""
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = np.float32(level(found[INVERSE, i] * x[j, i], np.int32(-top), np.int32(top - 1)))
            levels[j, i] = -np.float32(top) if np.isnan(found[INVERSE, i]) else q
