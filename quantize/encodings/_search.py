"""ggml's searches for the scale of a run of elements, for `LANES` runs side by side.

Shapes: x and weights w are [elements, LANES]; a row of a flat array is `LANES` long and named by its offset.
Sums run over the elements in order. Rows that are written together share one array, so that the compiler
sees that they do not overlap.
Source: llama.cpp `ggml/src/ggml-quants.c`, the functions each docstring names.
"""

from __future__ import annotations

import numpy as np

from ._jit import LANES, Lanes, kernel, level, nearest

ZERO, ONE = np.float32(0), np.float32(1)
TINY = np.float32(1e-15)  # smaller magnitudes count as zero
_TENTH = np.float32(0.1)

# Rows of a fit. Ranged: value = scale · level - minimum, level = round(inverse · (x - base)).
SCALE, INVERSE, MINIMUM, BASE = 0, LANES, 2 * LANES, 3 * LANES
# Rows of sums over a run.
_A, _B, _C, _D = 0, LANES, 2 * LANES, 3 * LANES


@kernel
def search_ranged(
    x: Lanes, w: Lanes, top: int, first: float, step: float, trials: int, absolute: bool, found: Lanes
) -> None:
    """Scale and minimum of levels 0 … top by weighted least squares; fills found, rows of a ranged fit.

    Inverse scales tried are (first + step · t + top) / range for t = 0 … trials; the error is squared or `absolute`.
    A constant run has scale and inverse 0. Source: `make_qkx2_quants`, `make_qkx3_quants`.
    """
    levels = np.empty_like(x)
    largest, totals, sums = np.empty(LANES, np.float32), np.empty(3 * LANES, np.float32), np.empty_like(found)
    _ranged_start(x, w, top, found, largest, totals)
    trial = found.copy()
    _ranged_fit(x, w, top, trial, totals, levels, sums)
    for i in range(LANES):
        sums[_A + i], sums[_B + i] = found[SCALE + i], found[BASE + i]
    _ranged_error(x, w, levels, absolute, sums)
    for i in range(LANES):
        # a constant run keeps its zeros: no error is less than this
        totals[_C + i] = -np.float32(np.inf) if found[INVERSE + i] == ZERO else sums[_D + i]
    for t in range(trials + 1):
        numerator = np.float32(first) + np.float32(step) * np.float32(t) + np.float32(top)
        for i in range(LANES):
            trial[INVERSE + i] = numerator / (largest[i] - found[MINIMUM + i])
            trial[BASE + i] = found[MINIMUM + i]
        _ranged_fit(x, w, top, trial, totals, levels, sums)
        _ranged_error(x, w, levels, absolute, sums)
        for i in range(LANES):
            if sums[_C + i] > ZERO and sums[_D + i] < totals[_C + i]:
                totals[_C + i] = sums[_D + i]
                found[SCALE + i], found[MINIMUM + i] = sums[_A + i], sums[_B + i]
                found[INVERSE + i], found[BASE + i] = trial[INVERSE + i], trial[BASE + i]
    for i in range(LANES):
        found[MINIMUM + i] = -found[MINIMUM + i]


@kernel
def _ranged_start(x: Lanes, w: Lanes, top: int, found: Lanes, largest: Lanes, totals: Lanes) -> None:
    """The fit to the whole range, with the minimum not above zero; sums of w and w · x."""
    for i in range(LANES):
        found[BASE + i] = largest[i] = x[0, i]
        totals[_A + i], totals[_B + i] = w[0, i], w[0, i] * x[0, i]
    for j in range(1, x.shape[0]):
        for i in range(LANES):
            value = x[j, i]
            found[BASE + i] = value if value < found[BASE + i] else found[BASE + i]
            largest[i] = value if value > largest[i] else largest[i]
            totals[_A + i] += w[j, i]
            totals[_B + i] += w[j, i] * value
    for i in range(LANES):
        low = ZERO if found[BASE + i] > ZERO else found[BASE + i]
        inverse = ZERO if largest[i] == low else np.float32(top) / (largest[i] - low)
        found[INVERSE + i], found[BASE + i], found[MINIMUM + i] = inverse, low, low
        found[SCALE + i] = ZERO if inverse == ZERO else ONE / inverse


@kernel
def _ranged_fit(x: Lanes, w: Lanes, top: int, trial: Lanes, totals: Lanes, levels: Lanes, sums: Lanes) -> None:
    """Levels of a trial, and the scale (A) and minimum (B) that fit them best with their determinant (C)."""
    high = np.int32(top)
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = np.float32(level(trial[INVERSE + i] * (x[j, i] - trial[BASE + i]), np.int32(0), high))
            levels[j, i] = q
            wq = w[j, i] * q
            sums[_A + i] += wq
            sums[_B + i] += wq * q
            sums[_C + i] += wq * x[j, i]
    for i in range(LANES):
        sum_w, sum_x, sum_l, sum_l2, sum_xl = totals[_A + i], totals[_B + i], sums[_A + i], sums[_B + i], sums[_C + i]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        sums[_A + i] = sum_xl / sum_l2 if minimum > ZERO else scale
        sums[_B + i] = ZERO if minimum > ZERO else minimum
        sums[_C + i] = determinant


@kernel
def _ranged_error(x: Lanes, w: Lanes, levels: Lanes, absolute: bool, sums: Lanes) -> None:
    """The error (D) of levels with the scale (A) and minimum (B)."""
    for i in range(LANES):
        sums[_D + i] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            off = sums[_A + i] * levels[j, i] + sums[_B + i] - x[j, i]
            sums[_D + i] += w[j, i] * (abs(off) if absolute else off * off)


@kernel
def search_signed(x: Lanes, w: Lanes, top: int, found: Lanes) -> None:
    """Scale of levels -top … top - 1, found[SCALE], and the inverse scale whose levels gave it, found[INVERSE].

    Inverse scales tried are -(top + 0.1 t) / extreme for |t| < 10. A run of zeros has scale 0 and inverse NaN.
    Source: `make_qx_quants`.
    """
    extreme, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    trial, sums = np.empty(LANES, np.float32), np.empty(2 * LANES, np.float32)
    find_extreme(x, extreme)
    for i in range(LANES):
        found[INVERSE + i] = -np.float32(top) / extreme[i]
        trial[i] = found[INVERSE + i]
    _signed_sums(x, w, top, trial, sums)
    for i in range(LANES):
        found[SCALE + i] = ZERO if sums[_B + i] == ZERO else sums[_A + i] / sums[_B + i]
        best[i] = found[SCALE + i] * sums[_A + i]
    for t in range(-9, 10):
        if t == 0:
            continue
        numerator = -(np.float32(top) + _TENTH * np.float32(t))
        for i in range(LANES):
            trial[i] = numerator / extreme[i]
        _signed_sums(x, w, top, trial, sums)
        for i in range(LANES):
            lx, l2 = sums[_A + i], sums[_B + i]
            if l2 > ZERO and lx * lx > best[i] * l2:
                found[SCALE + i], found[INVERSE + i] = lx / l2, trial[i]
                best[i] = found[SCALE + i] * lx
    for i in range(LANES):
        if abs(extreme[i]) < TINY:
            found[SCALE + i], found[INVERSE + i] = ZERO, np.float32(np.nan)


@kernel
def find_extreme(x: Lanes, extreme: Lanes) -> None:
    """The element farthest from zero, the first of equals; +0 for zeros of either sign."""
    for i in range(LANES):
        extreme[i] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            extreme[i] = x[j, i] if abs(x[j, i]) > abs(extreme[i]) else extreme[i]


@kernel
def _signed_sums(x: Lanes, w: Lanes, top: int, inverse: Lanes, sums: Lanes) -> None:
    """Sums of w · x · level (A) and w · level² (B)."""
    low, high = np.int32(-top), np.int32(top - 1)
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = np.float32(level(inverse[i] * x[j, i], low, high))
            sums[_A + i] += w[j, i] * x[j, i] * q
            sums[_B + i] += w[j, i] * q * q


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
