"""Loops over the codes of rows: error feedback, and descent on codes and scales, under the second moments of inputs.

A block of columns is treated at a time, of many rows; what its changes do to other columns is a product of matrices
that the caller does. Every row is by itself and every sum in order, so that results do not depend on how rows are cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ..encodings._jit import kernel, rounded

Codes = NDArray[np.uint8]
Columns = NDArray[np.int64]

_ZERO, _HALF, _TWO = np.float32(0), np.float32(0.5), np.float32(2)


@kernel
def nearest(x: np.float32, ranked: Float32, is_even: bool) -> int:
    """Place of the level nearest to x among ascending ones, which are one apart if `is_even`."""
    last = ranked.shape[0] - 1
    if not x > ranked[0]:  # also where x is no number
        return 0
    if x >= ranked[last]:
        return last
    if is_even:
        return int(np.rint(x - ranked[0]))
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        if ranked[middle] <= x:
            low = middle
        else:
            high = middle
    return low if x - ranked[low] <= ranked[high] - x else high


@kernel
def feed_back(
    wanted: Float32,
    sought: Float32,
    feedback: Float32,
    columns: Columns,
    run: int,
    scales: Float32,
    zeros: Float32,
    offsets: Float32,
    ranked: Float32,
    is_even: bool,
    code_of: Codes,
    codes: Codes,
    off: Float32,
) -> None:
    """Codes of a block of columns, in the order in which errors are fed into those that follow.

    Shapes: wanted, sought and off [n, width]; feedback [width, width]; columns [width]; codes [n, n_cols]. `sought` is
    what is wanted plus the errors of columns before; `off` becomes what is wanted minus what is stored.
    """
    n, width = wanted.shape
    for i in range(n):
        for j in range(width):
            at = columns[j]
            r = at // run
            scale, zero, offset = scales[i, r], zeros[i, r], offsets[i, r]
            if scale == _ZERO:
                value = offset
            else:
                place = nearest((sought[i, j] - offset) / scale + zero, ranked, is_even)
                codes[i, at] = code_of[place]
                value = (ranked[place] - zero) * scale + offset
            error = wanted[i, j] - value
            off[i, j] = error
            for k in range(j + 1, width):
                sought[i, k] += error * feedback[j, k]


@kernel
def descend(
    first: int,
    moments: Float32,
    slopes: Float32,
    values: Float32,
    moved: Float32,
    run: int,
    scales: Float32,
    zeros: Float32,
    offsets: Float32,
    has_offsets: bool,
    kind: int,
    levels: Float32,
    ranked: Float32,
    is_even: bool,
    code_of: Codes,
    codes: Codes,
) -> None:
    """Lowers the error of a block of columns from `first` on by its codes, then by its scales unless `kind` is negative.

    Shapes: moments [width, width]; slopes, values and moved [n, width], where slopes are the errors times the moments
    and `moved` becomes the change of values.
    """
    n, width = values.shape
    for i in range(n):
        for j in range(width):
            moved[i, j] = -values[i, j]
        for j in range(width):
            r = (first + j) // run
            scale, zero, offset = scales[i, r], zeros[i, r], offsets[i, r]
            if scale == _ZERO or not moments[j, j] > _ZERO:
                continue
            best = values[i, j] - slopes[i, j] / moments[j, j]
            place = nearest((best - offset) / scale + zero, ranked, is_even)
            step = (ranked[place] - zero) * scale + offset - values[i, j]
            if step * (slopes[i, j] + _HALF * step * moments[j, j]) < _ZERO:
                codes[i, first + j] = code_of[place]
                values[i, j] += step
                for k in range(width):
                    slopes[i, k] += step * moments[j, k]
        if kind >= 0:
            for start in range(0, width, run):
                _refit(
                    i,
                    start,
                    first,
                    moments,
                    slopes,
                    values,
                    run,
                    scales,
                    zeros,
                    offsets,
                    has_offsets,
                    kind,
                    levels,
                    codes,
                )
        for j in range(width):
            moved[i, j] += values[i, j]


@kernel
def _refit(
    i: int,
    start: int,
    first: int,
    moments: Float32,
    slopes: Float32,
    values: Float32,
    run: int,
    scales: Float32,
    zeros: Float32,
    offsets: Float32,
    has_offsets: bool,
    kind: int,
    levels: Float32,
    codes: Codes,
) -> None:
    """The scale of a run, and its offset, that lower the error most with its codes as they are; none that is far off.

    A scale keeps its sign and stays within a factor of two: formats differ in what they take beyond.
    """
    r = (first + start) // run
    scale, zero, offset = scales[i, r], zeros[i, r], offsets[i, r]
    if scale == _ZERO:
        return
    steps = np.empty(run, np.float32)
    for j in range(run):
        steps[j] = levels[codes[i, first + start + j]] - zero
    by_scale, by_offset = _ZERO, _ZERO
    both_scales, mixed, both_offsets = _ZERO, _ZERO, _ZERO
    for j in range(run):
        with_scale, with_offset = _ZERO, _ZERO
        for k in range(run):
            moment = moments[start + j, start + k]
            with_scale += moment * steps[k]
            with_offset += moment
        by_scale += steps[j] * slopes[i, start + j]
        by_offset += slopes[i, start + j]
        both_scales += steps[j] * with_scale
        mixed += steps[j] * with_offset
        both_offsets += with_offset
    if has_offsets:
        size = both_scales * both_offsets - mixed * mixed
        if not size > np.float32(1e-6) * both_scales * both_offsets:
            return
        scale_step = -(by_scale * both_offsets - by_offset * mixed) / size
        offset_step = -(by_offset * both_scales - by_scale * mixed) / size
    else:
        if not both_scales > _ZERO:
            return
        scale_step, offset_step = -by_scale / both_scales, _ZERO
    new_scale = rounded(scale + scale_step, kind)
    ratio = new_scale / scale
    if not (ratio >= _HALF and ratio <= _TWO):
        return
    new_offset = rounded(offset + offset_step, kind) if has_offsets else offset
    scale_step, offset_step = new_scale - scale, new_offset - offset
    change = (
        scale_step * by_scale
        + offset_step * by_offset
        + _HALF * (scale_step * scale_step * both_scales + offset_step * offset_step * both_offsets)
        + scale_step * offset_step * mixed
    )
    if not change < _ZERO:
        return
    scales[i, r], offsets[i, r] = new_scale, new_offset
    for j in range(run):
        value = steps[j] * new_scale + new_offset
        step = value - values[i, start + j]
        values[i, start + j] = value
        for k in range(slopes.shape[1]):
            slopes[i, k] += step * moments[start + j, k]
