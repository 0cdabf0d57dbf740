"""The search for scales and zero points of integer blocks, for `LANES` blocks side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ._jit import LANES, ROUNDER, Lanes, kernel, load_importance
from ._vectors import WIDTH, Vector, empty_lanes, load, load_row, negative, splat, store_row, where

_TINY = np.float32(1e-38)
_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def fit(
    blocks: Float32, importance: Float32, widths: Float32, shifts: Float32, top: np.float32
) -> tuple[Float32, NDArray[np.uint8]]:
    """Scale and zero point [n] of blocks [n, size] with the lowest weighted squared error that was found.

    importance [m, size] repeats every m blocks; codes are 0 … top. Each width, in steps, is tried as the range's
    with the nearest zero point and each shift of it, then the best try's fitted scale once more.
    """
    n, size = blocks.shape
    scales, zeros = np.zeros(n, np.float32), np.zeros(n, np.uint8)
    x, weights, found = empty_lanes(size, LANES), empty_lanes(size, LANES), empty_lanes(2, LANES)
    are_equal = len(importance) == 1 and (importance == _ONE).all()
    for first in range(0, n, LANES):
        load(blocks, first, x)
        if not are_equal and (first == 0 or LANES % len(importance)):
            load_importance(importance, first, weights)
        for at in range(0, LANES, WIDTH):
            scale, zero = _search(x, weights, are_equal, at, widths, shifts, top)
            store_row(found, 0, at, scale)
            store_row(found, 1, at, zero)
        for lane in range(min(LANES, n - first)):
            scales[first + lane], zeros[first + lane] = found[0, lane], np.uint8(found[1, lane])
    return scales, zeros


@kernel
def _search(
    x: Lanes, weights: Lanes, are_equal: bool, at: int, widths: Float32, shifts: Float32, top: np.float32
) -> tuple[Vector, Vector]:
    """Those of `WIDTH` lanes from one on."""
    low = high = splat(_ZERO)
    for j in range(x.shape[0]):
        value = load_row(x, j, at)
        low, high = where(value < low, value, low), where(value > high, value, high)
    best, best_scale, best_zero = splat(-_ONE), splat(_ZERO), splat(_ZERO)
    for trial in range(len(shifts) * len(widths) + 1):
        if trial < len(shifts) * len(widths):
            width, shift = widths[trial % len(widths)], shifts[trial // len(widths)]
            inverse = splat(_ONE) / _at_least((high - low) / splat(width), _TINY)
            nearest = (negative(low) * inverse + splat(ROUNDER)) - splat(ROUNDER)
            zero = _at_most(_at_least(nearest + splat(shift), _ZERO), top)
        else:
            inverse, zero = splat(_ONE) / _at_least(best_scale, _TINY), best_zero
        dot, norm = _sums(x, weights, are_equal, at, inverse, negative(zero), splat(top) - zero)
        scale = dot / _at_least(norm, _TINY)
        explained = scale * dot
        is_better = explained > best
        best, best_scale = where(is_better, explained, best), where(is_better, scale, best_scale)
        best_zero = where(is_better, zero, best_zero)
    return best_scale, best_zero


@kernel
def _at_least(value: Vector, least: np.float32) -> Vector:
    return where(value < splat(least), splat(least), value)


@kernel
def _at_most(value: Vector, most: np.float32) -> Vector:
    return where(value > splat(most), splat(most), value)


@kernel
def _sums(
    x: Lanes, weights: Lanes, are_equal: bool, at: int, inverse: Vector, low: Vector, high: Vector
) -> tuple[Vector, Vector]:
    """Of the nearest steps q, low … high: sums of w·q·x and w·q², which give the best scale and how much it explains."""
    dot = norm = splat(_ZERO)
    for j in range(x.shape[0]):
        value = load_row(x, j, at)
        q = (value * inverse + splat(ROUNDER)) - splat(ROUNDER)
        q = where(q < low, low, q)
        q = where(q > high, high, q)
        weighted = q if are_equal else load_row(weights, j, at) * q
        dot, norm = dot + weighted * value, norm + weighted * q
    return dot, norm


@kernel
def codes(blocks: Float32, scales: Float32, zeros: NDArray[np.uint8], top: np.float32) -> NDArray[np.uint8]:
    """The nearest codes [n, size] on given grids; a scale of zero means that all are the zero point."""
    found = np.empty(blocks.shape, np.uint8)
    for block in range(len(blocks)):
        zero = np.float32(zeros[block])
        inverse = _ONE / scales[block] if scales[block] > _TINY else _ZERO
        for i in range(blocks.shape[1]):
            q = (blocks[block, i] * inverse + ROUNDER) - ROUNDER
            found[block, i] = np.uint8(np.int32(min(max(q + zero, _ZERO), top)))
    return found


@kernel
def nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes below 16 by twos as bytes, the first of each in the low half."""
    of_all = codes.reshape(-1)
    found = np.empty(len(of_all) // 2, np.uint8)
    for i in range(len(found)):
        found[i] = of_all[2 * i] | (of_all[2 * i + 1] << np.uint8(4))
    return found
