"""Searches of `--refine`: the units, scales and levels of a block that lower its weighted squared error.

A block [elements, LANES] is cut into runs of equal length. Its units are float16, each run's scales are integers that
count them, and its levels lie on that grid. Here a fit is judged by the error of what will be stored, and
units, scales and levels are improved in turn, each for the others as they are. Sums are of the weights w and the
residual x - value, so that they keep their precision where little is lost.
"""

from __future__ import annotations

import numpy as np

from ._jit import LANES, ROUNDER, Lanes, half, kernel, widened
from ._kernels_iq4 import nearest_value
from ._search import MINIMUM as LOW
from ._search import ONE, SCALE, ZERO, find_extreme, search_ranged
from ._tables import IQ4

_INFINITE = np.float32(np.inf)
_ROUNDS = 3  # units after scales after levels
TABLE = 0  # in place of the lowest level: levels are the values of the IQ4 table

# Rows of the sums of a run: w·r², w·r·q, w·q², and of a ranged one w·r, w·q, w.
_RR, _RQ, _QQ, _R, _Q, _W = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES, 5 * LANES


@kernel
def _rounded(x: np.float32, low: np.float32, high: np.float32) -> np.float32:
    return min(max((x + ROUNDER) - ROUNDER, low), high)


@kernel
def _stored(unit: Lanes) -> None:
    """Rounds to what float16 holds."""
    for i in range(LANES):
        unit[i] = widened(half(unit[i]))


@kernel
def _inverse(scale: Lanes) -> Lanes:
    inverse = np.empty(LANES, np.float32)
    for i in range(LANES):
        inverse[i] = ZERO if scale[i] == ZERO else ONE / scale[i]
    return inverse


@kernel
def signed_levels(x: Lanes, scale: Lanes, low: int, high: int, levels: Lanes) -> None:
    """The nearest of low … high, or of the table's values; 0 or the nearest to it at scale 0."""
    inverse = _inverse(scale)
    if low == TABLE:
        for j in range(x.shape[0]):
            for i in range(LANES):
                levels[j, i] = nearest_value(x[j, i] * inverse[i])
    else:
        for j in range(x.shape[0]):
            for i in range(LANES):
                levels[j, i] = _rounded(x[j, i] * inverse[i], np.float32(low), np.float32(high))


@kernel
def _signed_sums(x: Lanes, w: Lanes, scale: Lanes, low: int, high: int, levels: Lanes, sums: Lanes) -> None:
    signed_levels(x, scale, low, high, levels)
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = levels[j, i]
            r = x[j, i] - scale[i] * q
            wr = w[j, i] * r
            sums[_RR + i] += wr * r
            sums[_RQ + i] += wr * q
            sums[_QQ + i] += w[j, i] * q * q


@kernel
def _search_scale(x: Lanes, w: Lanes, low: int, high: int, levels: Lanes, best: Lanes) -> None:
    """The scale, of either sign, whose nearest levels leave the least error once it is fitted to them."""
    extreme, least = np.empty(LANES, np.float32), np.full(LANES, _INFINITE, np.float32)
    scale, sums = np.empty(LANES, np.float32), np.empty(3 * LANES, np.float32)
    find_extreme(x, extreme)
    best[:] = ZERO
    # the level the extreme falls on: clipping pays the more, the fewer levels there are
    lowest, past, below, step = -low, np.float32(1), np.float32(min(-0.45 * low, 6.0)), np.float32(0.25)
    if low == TABLE:
        lowest, past, below, step = -IQ4[0], np.float32(10), np.float32(47), np.float32(4)
    n_trials = int((below + past) / step) + 1
    for sign in range(-1, 1 if lowest == high else 2, 2):
        for t in range(n_trials + _ROUNDS):
            for i in range(LANES):
                ratio = np.float32(sign) * (np.float32(lowest) - below + step * np.float32(t))
                scale[i] = extreme[i] / ratio if t < n_trials else best[i]
            _signed_sums(x, w, scale, low, high, levels, sums)
            for i in range(LANES):
                shift = sums[_RQ + i] / sums[_QQ + i]
                error = sums[_RR + i] - shift * sums[_RQ + i]
                if error < least[i]:
                    least[i], best[i] = error, scale[i] + shift


@kernel
def fit_signed(x: Lanes, w: Lanes, low: int, high: int, least: int, most: int, unit: Lanes, scales: Lanes) -> None:
    """Unit [LANES] and scales least … most [runs, LANES] of levels low … high: value = unit · scale · level.

    With least and most 1 a block has a single run, whose scale is the unit.
    """
    n_runs = scales.shape[0]
    wanted, extreme = np.empty((n_runs, LANES), np.float32), np.empty(LANES, np.float32)
    levels, trial = np.empty((x.shape[0] // n_runs, LANES), np.float32), np.empty(LANES, np.float32)
    total, error = np.full(LANES, _INFINITE, np.float32), np.empty(LANES, np.float32)
    chosen, next_unit = np.empty((n_runs, LANES), np.float32), np.empty(LANES, np.float32)
    for run in range(n_runs):
        at = slice(len(levels) * run, len(levels) * (run + 1))
        _search_scale(x[at], w[at], low, high, levels, wanted[run])
    find_extreme(wanted, extreme)
    unit[:], scales[:] = ZERO, ZERO
    n_trials = 1 if least == most else 6
    for t in range(n_trials):
        # the largest scale on the lowest level, then on less, and on the highest
        divisor = np.float32(least + 0.5 * t) if t < 4 else np.float32(most - (t - 4))
        for i in range(LANES):
            trial[i] = extreme[i] / divisor
        for _ in range(_ROUNDS):
            _stored(trial)
            _try_unit(x, w, low, high, least, most, wanted, trial, chosen, error, next_unit)
            for i in range(LANES):
                if error[i] < total[i]:
                    total[i], unit[i] = error[i], trial[i]
                    for run in range(n_runs):
                        scales[run, i] = chosen[run, i]
                trial[i] = next_unit[i]


@kernel
def _try_unit(
    x: Lanes, w: Lanes, low: int, high: int, least: int, most: int, wanted: Lanes, unit: Lanes,
    chosen: Lanes, error: Lanes, fitted: Lanes,
) -> None:  # fmt: skip
    """Of the two scales beside the wanted one the better, for each run; the error of all, and the unit that fits them."""
    n_runs = chosen.shape[0]
    length = x.shape[0] // n_runs
    levels, scale = np.empty((length, LANES), np.float32), np.empty(LANES, np.float32)
    first, second = np.empty(3 * LANES, np.float32), np.empty(3 * LANES, np.float32)
    dot, norm, other = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    error[:] = ZERO
    for run in range(n_runs):
        at = slice(length * run, length * (run + 1))
        for i in range(LANES):
            below = np.floor(wanted[run, i] / unit[i])
            chosen[run, i] = min(max(below, np.float32(least)), np.float32(most))
            other[i] = min(max(below + ONE, np.float32(least)), np.float32(most))
            scale[i] = unit[i] * chosen[run, i]
        _signed_sums(x[at], w[at], scale, low, high, levels, first)
        if least != most:
            for i in range(LANES):
                scale[i] = unit[i] * other[i]
            _signed_sums(x[at], w[at], scale, low, high, levels, second)
            for i in range(LANES):
                if second[_RR + i] < first[_RR + i]:
                    chosen[run, i] = other[i]
                    first[_RR + i], first[_RQ + i], first[_QQ + i] = second[_RR + i], second[_RQ + i], second[_QQ + i]
        for i in range(LANES):
            error[i] += first[_RR + i]
            dot[i] += chosen[run, i] * first[_RQ + i]
            norm[i] += chosen[run, i] * chosen[run, i] * first[_QQ + i]
    for i in range(LANES):
        fitted[i] = unit[i] + dot[i] / norm[i]


@kernel
def ranged_levels(x: Lanes, scale: Lanes, minimum: Lanes, top: int, levels: Lanes) -> None:
    """The nearest of 0 … top; 0 where the scale is 0."""
    inverse = _inverse(scale)
    for j in range(x.shape[0]):
        for i in range(LANES):
            levels[j, i] = _rounded((x[j, i] + minimum[i]) * inverse[i], ZERO, np.float32(top))


@kernel
def _ranged_sums(x: Lanes, w: Lanes, scale: Lanes, minimum: Lanes, top: int, levels: Lanes, sums: Lanes) -> None:
    ranged_levels(x, scale, minimum, top, levels)
    sums[:] = ZERO
    for j in range(x.shape[0]):
        for i in range(LANES):
            q = levels[j, i]
            r = x[j, i] + minimum[i] - scale[i] * q
            wr, wq = w[j, i] * r, w[j, i] * q
            sums[_RR + i] += wr * r
            sums[_RQ + i] += wr * q
            sums[_QQ + i] += wq * q
            sums[_R + i] += wr
            sums[_Q + i] += wq
            sums[_W + i] += w[j, i]


@kernel
def fit_ranged(x: Lanes, w: Lanes, top: int, least: int, most: int, units: Lanes, scales: Lanes) -> None:
    """Units [2, LANES] of scales and minima, which are least … most [2, runs, LANES], of levels 0 … top.

    value = units[0] · scale · level - units[1] · minimum. With least and most 1 a block has a single run.
    """
    n_runs = scales.shape[1]
    length = x.shape[0] // n_runs
    wanted, found = np.empty((2, n_runs, LANES), np.float32), np.empty((4, LANES), np.float32)
    largest, trial = np.zeros((2, LANES), np.float32), np.empty((2, LANES), np.float32)
    chosen, total = np.empty((2, n_runs, LANES), np.float32), np.full(LANES, _INFINITE, np.float32)
    error, fitted = np.empty(LANES, np.float32), np.empty((2, LANES), np.float32)
    for run in range(n_runs):
        at = slice(length * run, length * (run + 1))
        search_ranged(x[at], w[at], top, -0.9, 0.1, 18, False, found)
        wanted[0, run], wanted[1, run] = found[SCALE], found[LOW]
    for which in range(2):
        for run in range(n_runs):
            for i in range(LANES):
                largest[which, i] = max(largest[which, i], wanted[which, run, i])
    units[:], scales[:] = ZERO, ZERO
    for t in range(1 if least == most else 5):
        divisor = np.float32(most - 0.5 * t)
        for which in range(2):
            for i in range(LANES):
                trial[which, i] = largest[which, i] / divisor
            _stored(trial[which])
            _nearest_scales(wanted[which], trial[which], least, most, chosen[which])
        for _ in range(_ROUNDS):
            _improve_scales(x, w, top, least, most, trial, chosen)
            _fit_units(x, w, top, trial, chosen, error, fitted)
            for i in range(LANES):
                if error[i] < total[i]:
                    total[i] = error[i]
                    for which in range(2):
                        units[which, i] = trial[which, i]
                        for run in range(n_runs):
                            scales[which, run, i] = chosen[which, run, i]
            trial[:] = fitted
            _stored(trial[0])
            _stored(trial[1])


@kernel
def _nearest_scales(wanted: Lanes, unit: Lanes, least: int, most: int, chosen: Lanes) -> None:
    for run in range(len(wanted)):
        for i in range(LANES):
            count = ZERO if unit[i] == ZERO else wanted[run, i] / unit[i]
            chosen[run, i] = _rounded(count, np.float32(least), np.float32(most))


@kernel
def _improve_scales(x: Lanes, w: Lanes, top: int, least: int, most: int, units: Lanes, chosen: Lanes) -> None:
    """Moves each run's scale and minimum to the pair of integers that fits its levels best, of two."""
    if least == most:
        return
    n_runs = chosen.shape[1]
    length, low, high = x.shape[0] // n_runs, np.float32(least), np.float32(most)
    levels, sums = np.empty((length, LANES), np.float32), np.empty(6 * LANES, np.float32)
    scale, minimum = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for run in range(n_runs):
        at = slice(length * run, length * (run + 1))
        for i in range(LANES):
            scale[i], minimum[i] = units[0, i] * chosen[0, run, i], units[1, i] * chosen[1, run, i]
        _ranged_sums(x[at], w[at], scale, minimum, top, levels, sums)
        for i in range(LANES):
            rq, qq, r, q, total = sums[_RQ + i], sums[_QQ + i], sums[_R + i], sums[_Q + i], sums[_W + i]
            shift = (rq * total - r * q) / (qq * total - q * q)
            below = np.floor(chosen[0, run, i] + shift / units[0, i])
            best, kept, other = ZERO, chosen[0, run, i], chosen[1, run, i]
            for k in range(2):
                count = min(max(below + np.float32(k), low), high)
                more = (count - chosen[0, run, i]) * units[0, i]
                lower = (more * q - r) / total / units[1, i]
                minima = _rounded(chosen[1, run, i] + lower, low, high)
                down = (minima - chosen[1, run, i]) * units[1, i]
                change = more * more * qq - 2 * more * rq + 2 * down * r - 2 * more * down * q + down * down * total
                if change < best:
                    best, kept, other = change, count, minima
            chosen[0, run, i], chosen[1, run, i] = kept, other


@kernel
def _fit_units(x: Lanes, w: Lanes, top: int, units: Lanes, chosen: Lanes, error: Lanes, fitted: Lanes) -> None:
    """The error of scales and minima, and the units that fit them and their levels best."""
    n_runs = chosen.shape[1]
    length = x.shape[0] // n_runs
    levels, sums = np.empty((length, LANES), np.float32), np.empty(6 * LANES, np.float32)
    scale, minimum = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    a, b, c = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    d, e = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    error[:] = ZERO
    for run in range(n_runs):
        at = slice(length * run, length * (run + 1))
        for i in range(LANES):
            scale[i], minimum[i] = units[0, i] * chosen[0, run, i], units[1, i] * chosen[1, run, i]
        _ranged_sums(x[at], w[at], scale, minimum, top, levels, sums)
        for i in range(LANES):
            s, m = chosen[0, run, i], chosen[1, run, i]
            error[i] += sums[_RR + i]
            a[i] += s * s * sums[_QQ + i]
            b[i] += s * m * sums[_Q + i]
            c[i] += m * m * sums[_W + i]
            d[i] += s * sums[_RQ + i]
            e[i] += m * sums[_R + i]
    for i in range(LANES):
        determinant = a[i] * c[i] - b[i] * b[i]
        if determinant > ZERO:
            fitted[0, i] = units[0, i] + (d[i] * c[i] - b[i] * e[i]) / determinant
            fitted[1, i] = units[1, i] + (d[i] * b[i] - a[i] * e[i]) / determinant
        else:
            fitted[0, i], fitted[1, i] = units[0, i] + d[i] / a[i], units[1, i]
