"""The search for scales and zero points of integer blocks, for `LANES` blocks side by side.

Arrays of lanes are made one by one, so that the compiler sees that they do not overlap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ._jit import LANES, ROUNDER, Lanes, kernel, load, load_importance

_TINY = np.float32(1e-38)
_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def _range(x: Lanes, low: Lanes, high: Lanes) -> None:
    """Least and largest value of each lane, zero included."""
    low[:], high[:] = _ZERO, _ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            low[lane], high[lane] = min(low[lane], x[i, lane]), max(high[lane], x[i, lane])


@kernel
def _sums(x: Lanes, weights: Lanes, inverse: Lanes, zero: Lanes, top: np.float32, dot: Lanes, norm: Lanes) -> None:
    """Of the nearest steps q: sums of w·q·x and w·q², which give the best scale and how much it explains."""
    dot[:], norm[:] = _ZERO, _ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            q = (x[i, lane] * inverse[lane] + ROUNDER) - ROUNDER
            q = min(max(q, -zero[lane]), top - zero[lane])
            weighted = weights[i, lane] * q
            dot[lane] += weighted * x[i, lane]
            norm[lane] += weighted * q


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
    x, weights = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    low, high = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    inverse, zero = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    dot, norm, best = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    best_scale, best_zero = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for first in range(0, n, LANES):
        load(blocks, first, x)
        if first == 0 or LANES % len(importance):
            load_importance(importance, first, weights)
        _range(x, low, high)
        best[:], best_scale[:], best_zero[:] = -_ONE, _ZERO, _ZERO
        for trial in range(len(shifts) * len(widths) + 1):
            for lane in range(LANES):
                if trial < len(shifts) * len(widths):
                    width, shift = widths[trial % len(widths)], shifts[trial // len(widths)]
                    inverse[lane] = _ONE / max((high[lane] - low[lane]) / width, _TINY)
                    nearest = (-low[lane] * inverse[lane] + ROUNDER) - ROUNDER
                    zero[lane] = min(max(nearest + shift, _ZERO), top)
                else:
                    inverse[lane], zero[lane] = _ONE / max(best_scale[lane], _TINY), best_zero[lane]
            _sums(x, weights, inverse, zero, top, dot, norm)
            for lane in range(LANES):
                scale = dot[lane] / max(norm[lane], _TINY)
                explained = scale * dot[lane]
                if explained > best[lane]:
                    best[lane], best_scale[lane], best_zero[lane] = explained, scale, zero[lane]
        for lane in range(min(LANES, n - first)):
            scales[first + lane], zeros[first + lane] = best_scale[lane], np.uint8(best_zero[lane])
    return scales, zeros


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
