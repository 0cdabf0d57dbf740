"""ggml's searches for the scale of a run of elements, for `LANES` runs side by side.

Shapes: x and weights w are [elements, LANES]; a row of a flat array is `LANES` long and named by its offset.
Sums run over the elements in order. Rows that are written together share one array, so that the compiler
sees that they do not overlap.
Source: llama.cpp `ggml/src/ggml-quants.c`, the functions each docstring names.
"""

from __future__ import annotations

import numpy as np

from ._jit import LANES, ROUNDER, Lanes, kernel, level, nearest
from ._vectors import (
    WIDTH,
    Vector,
    empty_lanes,
    load_row,
    magnitudes,
    nearest_levels,
    negative,
    splat,
    store_row,
    where,
)

ZERO, ONE = np.float32(0), np.float32(1)
TINY = np.float32(1e-15)  # smaller magnitudes count as zero
_TENTH = np.float32(0.1)

# Rows of a fit. Ranged: value = scale · level - minimum, level = round(inverse · (x - base)).
SCALE, INVERSE, MINIMUM, BASE = 0, 1, 2, 3
# Rows of sums over a run.
_A, _B = 0, LANES


@kernel
def search_ranged(
    x: Lanes, w: Lanes, top: int, first: float, step: float, trials: int, absolute: bool, found: Lanes
) -> None:
    """Scale and minimum of levels 0 … top by weighted least squares; fills found, rows of a ranged fit.

    Inverse scales tried are (first + step · t + top) / range for t = 0 … trials; the error is squared or `absolute`.
    A constant run has scale and inverse 0. Source: `make_qkx2_quants`, `make_qkx3_quants`.
    """
    scratch = empty_lanes(x.shape[0], WIDTH)
    for at in range(0, LANES, WIDTH):
        _search_ranged(x, w, at, np.float32(top), np.float32(first), np.float32(step), trials, absolute, scratch, found)


@kernel
def _search_ranged(
    x: Lanes, w: Lanes, at: int, top: np.float32, first: np.float32, step: np.float32, trials: int, absolute: bool,
    scratch: Lanes, found: Lanes,
) -> None:  # fmt: skip
    """The same for `WIDTH` lanes from one on."""
    low, high, sum_w, sum_x = _range(x, w, at)
    inverse = where(high == low, splat(ZERO), splat(top) / (high - low))
    scale, minimum, base = where(inverse == splat(ZERO), splat(ZERO), splat(ONE) / inverse), low, low
    _ranged_sums(x, w, at, top, inverse, base, scratch)
    # a constant run keeps its zeros: no error is less than this
    error = _ranged_error(x, w, at, scale, low, absolute, scratch)
    least = where(inverse == splat(ZERO), splat(-np.float32(np.inf)), error)
    for t in range(trials + 1):
        trial, from_ = splat(first + step * np.float32(t) + top) / (high - minimum), minimum
        sum_l, sum_l2, sum_xl = _ranged_sums(x, w, at, top, trial, from_, scratch)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        is_above = new_minimum > splat(ZERO)
        new_minimum = where(is_above, splat(ZERO), new_minimum)
        new_scale = where(is_above, sum_xl, sum_w * sum_xl - sum_x * sum_l) / where(is_above, sum_l2, determinant)
        error = _ranged_error(x, w, at, new_scale, new_minimum, absolute, scratch)
        is_better = (determinant > splat(ZERO)) & (error < least)
        least, scale = where(is_better, error, least), where(is_better, new_scale, scale)
        minimum, base = where(is_better, new_minimum, minimum), where(is_better, from_, base)
        inverse = where(is_better, trial, inverse)
    store_row(found, SCALE, at, scale)
    store_row(found, INVERSE, at, inverse)
    store_row(found, MINIMUM, at, negative(minimum))
    store_row(found, BASE, at, base)


@kernel
def _range(x: Lanes, w: Lanes, at: int) -> tuple[Vector, Vector, Vector, Vector]:
    """Least, not above zero, and largest; sums of w and w · x."""
    low = high = load_row(x, 0, at)
    sum_w = load_row(w, 0, at)
    sum_x = sum_w * low
    for j in range(1, x.shape[0]):
        value, weight = load_row(x, j, at), load_row(w, j, at)
        low, high = where(value < low, value, low), where(value > high, value, high)
        sum_w, sum_x = sum_w + weight, sum_x + weight * value
    return where(low > splat(ZERO), splat(ZERO), low), high, sum_w, sum_x


@kernel
def _ranged_sums(
    x: Lanes, w: Lanes, at: int, top: np.float32, inverse: Vector, base: Vector, scratch: Lanes
) -> tuple[Vector, Vector, Vector]:
    """Fills the levels of a trial; sums of w · level, w · level² and w · level · x."""
    sum_l = sum_l2 = sum_xl = splat(ZERO)
    lowest, highest = splat(ROUNDER), splat(top + ROUNDER)
    for j in range(x.shape[0]):
        value = load_row(x, j, at)
        q = nearest_levels(inverse * (value - base), lowest, highest)
        store_row(scratch, j, 0, q)
        wq = load_row(w, j, at) * q
        sum_l, sum_l2, sum_xl = sum_l + wq, sum_l2 + wq * q, sum_xl + wq * value
    return sum_l, sum_l2, sum_xl


@kernel
def _ranged_error(
    x: Lanes, w: Lanes, at: int, scale: Vector, minimum: Vector, absolute: bool, scratch: Lanes
) -> Vector:
    """The error of levels with a scale and minimum."""
    error = splat(ZERO)
    for j in range(x.shape[0]):
        off = scale * load_row(scratch, j, 0) + minimum - load_row(x, j, at)
        error = error + load_row(w, j, at) * (magnitudes(off) if absolute else off * off)
    return error


@kernel
def search_signed(x: Lanes, w: Lanes, top: int, found: Lanes) -> None:
    """Scale of levels -top … top - 1, found[SCALE], and the inverse scale whose levels gave it, found[INVERSE].

    Inverse scales tried are -(top + 0.1 t) / extreme for |t| < 10. A run of zeros has scale 0 and inverse NaN.
    Source: `make_qx_quants`.
    """
    wx = empty_lanes(x.shape[0], WIDTH)
    for at in range(0, LANES, WIDTH):
        for j in range(x.shape[0]):
            store_row(wx, j, 0, load_row(w, j, at) * load_row(x, j, at))
        extreme = extremes(x, at)
        inverse = splat(-np.float32(top)) / extreme
        lx, l2 = _signed_sums(x, w, wx, at, top, inverse)
        scale = where(l2 == splat(ZERO), splat(ZERO), lx / l2)
        best = scale * lx
        for t in range(-9, 10):
            if t == 0:
                continue
            trial = splat(-(np.float32(top) + _TENTH * np.float32(t))) / extreme
            lx, l2 = _signed_sums(x, w, wx, at, top, trial)
            is_better = (l2 > splat(ZERO)) & (lx * lx > best * l2)
            scale, inverse = where(is_better, lx / l2, scale), where(is_better, trial, inverse)
            best = where(is_better, scale * lx, best)
        is_empty = magnitudes(extreme) < splat(TINY)
        store_row(found, SCALE, at, where(is_empty, splat(ZERO), scale))
        store_row(found, INVERSE, at, where(is_empty, splat(np.float32(np.nan)), inverse))


@kernel
def extremes(x: Lanes, at: int) -> Vector:
    """See `find_extreme`."""
    extreme = splat(ZERO)
    for j in range(x.shape[0]):
        value = load_row(x, j, at)
        extreme = where(magnitudes(value) > magnitudes(extreme), value, extreme)
    return extreme


@kernel
def find_extreme(x: Lanes, extreme: Lanes) -> None:
    """The element farthest from zero, the first of equals; +0 for zeros of either sign."""
    for i in range(LANES):
        extreme[i] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            extreme[i] = x[j, i] if abs(x[j, i]) > abs(extreme[i]) else extreme[i]


@kernel
def _signed_sums(x: Lanes, w: Lanes, wx: Lanes, at: int, top: int, inverse: Vector) -> tuple[Vector, Vector]:
    """Sums of w · x · level and w · level²."""
    lx = l2 = splat(ZERO)
    low, high = splat(ROUNDER - np.float32(top)), splat(ROUNDER + np.float32(top - 1))
    for j in range(x.shape[0]):
        q = nearest_levels(inverse * load_row(x, j, at), low, high)
        lx, l2 = lx + load_row(wx, j, 0) * q, l2 + load_row(w, j, at) * q * q
    return lx, l2


@kernel
def search_cubic(x: Lanes, top: int, levels: Lanes, scale: Lanes) -> None:
    """Levels -top … top - 1 and scale, weighted by x²: five rounds that move one level at a time while that helps.

    Source: `make_q3_quants`.
    """
    extreme, sums = np.empty(LANES, np.float32), np.empty(2 * LANES, np.float32)
    low, high = np.int32(-top), np.int32(top - 1)
    find_extreme(x, extreme)
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = np.float32(level(-np.float32(top) / extreme[i] * x[j, i], low, high))
            w = x[j, i] * x[j, i]
            levels[j, i] = q
            sums[_A + i] += w * x[j, i] * q
            sums[_B + i] += w * q * q
    for _ in range(5):
        for j in range(x.shape[0]):
            for i in range(LANES):
                value, q, w = x[j, i], levels[j, i], x[j, i] * x[j, i]
                lx, l2 = sums[_A + i] - w * value * q, sums[_B + i] - w * q * q
                new = np.float32(level(value * l2 / lx, low, high))
                new_lx, new_l2 = lx + w * value * new, l2 + w * new * new
                helps = new_lx * new_lx * sums[_B + i] > sums[_A + i] * sums[_A + i] * new_l2
                if (lx > ZERO) & (new != q) & (new_l2 > ZERO) & helps:
                    levels[j, i], sums[_A + i], sums[_B + i] = new, new_lx, new_l2
    for i in range(LANES):
        scale[i] = sums[_A + i] / sums[_B + i] if sums[_B + i] > ZERO else ZERO
        if abs(extreme[i]) < TINY:
            scale[i] = ZERO
            for j in range(x.shape[0]):
                levels[j, i] = -np.float32(top)  # stored as level 0


@kernel
def search_positive(x: Lanes, w: Lanes, top: int, levels: Lanes, scale: Lanes) -> None:
    """Levels 0 … top and scale of numbers that are, but for rounding, not negative.

    The best of nine inverse scales, (top + 0.1 t) / largest for |t| < 5 with t = 0 first, then five rounds that
    move one level at a time while that helps. Levels are kept in eight bits. Source: `make_qp_quants`.
    """
    largest, best = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    inverse, sums = np.empty(LANES, np.float32), np.empty(2 * LANES, np.float32)
    for j in range(x.shape[0]):
        for i in range(LANES):
            largest[i] = x[j, i] if x[j, i] > largest[i] else largest[i]
    for t in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        numerator = _TENTH * np.float32(t) + np.float32(top)
        for i in range(LANES):
            sums[_A + i], sums[_B + i] = numerator / largest[i], ZERO
        for j in range(x.shape[0]):
            for i in range(LANES):
                q = min(np.int32(top), nearest(sums[_A + i] * x[j, i]))
                off = x[j, i] - ONE / sums[_A + i] * np.float32(q & np.int32(255) if t == 0 else q)
                sums[_B + i] += w[j, i] * off * off
        for i in range(LANES):
            if t == 0 or sums[_B + i] < best[i]:
                inverse[i], best[i] = sums[_A + i], sums[_B + i]
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = min(np.int32(top), nearest(inverse[i] * x[j, i]))
            levels[j, i] = np.float32(q & np.int32(255))
            sums[_A + i] += w[j, i] * x[j, i] * np.float32(q)
            sums[_B + i] += w[j, i] * np.float32(q) * np.float32(q)
    for _ in range(5):
        _move_positive(x, w, top, levels, sums)
    for i in range(LANES):
        scale[i] = sums[_A + i] / sums[_B + i] if sums[_B + i] > ZERO else ZERO
        if largest[i] < TINY:
            scale[i] = ZERO
            for j in range(x.shape[0]):
                levels[j, i] = ZERO


@kernel
def _move_positive(x: Lanes, w: Lanes, top: int, levels: Lanes, sums: Lanes) -> None:
    """One round over the elements: each takes the level that is best beside the others, if that helps."""
    for j in range(x.shape[0]):
        for i in range(LANES):
            value, q, weight = x[j, i], levels[j, i], w[j, i]
            lx, l2 = sums[_A + i] - weight * value * q, sums[_B + i] - weight * q * q
            new = min(np.int32(top), nearest(value * l2 / lx))
            step = np.float32(new)
            new_lx, new_l2 = lx + weight * value * step, l2 + weight * step * step
            helps = new_lx * new_lx * sums[_B + i] > sums[_A + i] * sums[_A + i] * new_l2
            if (lx > ZERO) & (l2 > ZERO) & (step != q) & helps:
                levels[j, i], sums[_A + i], sums[_B + i] = np.float32(new & np.int32(255)), new_lx, new_l2
