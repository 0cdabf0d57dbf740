"""Encoders of the IQ4 formats and of MXFP4: levels that stand for the values of a table, not for multiples of a step.

Arguments of the IQ4 kernels are those of `_kernels_k`, with blocks of 32 for IQ4_NL.
Source: llama.cpp `ggml/src/ggml-quants.c`, `quantize_row_iq4_nl_impl`, `quantize_row_mxfp4_ref`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from ._jit import LANES, Lanes, Records, bits, float_of, kernel, level, load_importance, store, store_half
from ._runs import weigh, weigh_by_square
from ._search import ONE, TINY, ZERO, extremes, find_extreme
from ._tables import E2M1, IQ4
from ._vectors import (
    WIDTH,
    Vector,
    empty_lanes,
    load,
    load_row,
    magnitudes,
    negative,
    splat,
    staircase,
    store_row,
    where,
)

Blocks = NDArray[np.float32]
_TRIALS = 7
# Between which the table's values are nearest: halfway points, which float32 holds.
_BOUNDS = tuple((low + high) / 2 for low, high in itertools.pairwise(IQ4))
_nearest_values = staircase(_BOUNDS, IQ4)  # `nearest_value` of vectors


@kernel
def encode_iq4_nl(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Blocks of 32 with a scale each."""
    x, w = empty_lanes(32, LANES), empty_lanes(32, LANES)
    scale, records = empty_lanes(1, LANES), np.empty((18, LANES), np.uint8)
    for start in range(0, len(blocks), LANES):
        load(blocks, start, x)
        _weights(x, importance, start, w)
        for at in range(0, LANES, WIDTH):
            store_row(scale, 0, at, _search_table(x, w, at))
        for i in range(LANES):
            store_half(scale[0, i], records, 0, i)
            scale[0, i] = ZERO if scale[0, i] == ZERO else ONE / scale[0, i]
        pack_run(x, scale[0], 2, records)
        store(records, start, out)


@kernel
def encode_iq4_xs(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Blocks of 256 with a six-bit scale for each run of 32."""
    x, w = empty_lanes(256, LANES), empty_lanes(256, LANES)
    scales, unit, inverse = empty_lanes(8, LANES), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    records = np.empty((136, LANES), np.uint8)
    for start in range(0, len(blocks), LANES):
        load(blocks, start, x)
        _weights(x, importance, start, w)
        for run in range(8):
            of_run = slice(32 * run, 32 * run + 32)
            for at in range(0, LANES, WIDTH):
                store_row(scales, run, at, _search_table(x[of_run], w[of_run], at))
        find_extreme(scales, unit)
        records[2:8] = np.uint8(0)
        for i in range(LANES):
            unit[i] = -unit[i] / np.float32(32)
            store_half(unit[i], records, 0, i)
        for run in range(8):
            for i in range(LANES):
                whole = ZERO if unit[i] == ZERO else ONE / unit[i]
                q = level(whole * scales[run, i], np.int32(-32), np.int32(31))
                scale = unit[i] * np.float32(q)
                inverse[i] = ZERO if scale == ZERO else ONE / scale
                byte = np.uint8(q + np.int32(32))
                records[2 + run // 4, i] |= (byte >> np.uint8(4)) << np.uint8(2 * (run % 4))
                records[4 + run // 2, i] |= (byte & np.uint8(15)) << np.uint8(4 * (run % 2))
            pack_run(x[32 * run : 32 * run + 32], inverse, 8 + 16 * run, records)
        store(records, start, out)


@kernel
def _weights(x: Lanes, importance: Blocks, start: int, w: Lanes) -> None:
    if len(importance):
        load_importance(importance, start, w)
        weigh(x, np.float32(2), w)
    else:
        weigh_by_square(x, w)


@kernel
def _search_table(x: Lanes, w: Lanes, at: int) -> Vector:
    """The scale of each run, of `WIDTH` from one on, that minimises the weighted squared error, of sixteen tried."""
    extreme = extremes(x, at)
    scale = best = splat(ZERO)
    for t in range(-_TRIALS - 1, _TRIALS + 1):
        is_first = t == -_TRIALS - 1  # the extreme on the table's first value
        if is_first:
            inverse = splat(ONE) / (negative(extreme) / splat(np.float32(IQ4[0])))
        else:
            inverse = splat(np.float32(t + IQ4[0])) / extreme
        lx = l2 = splat(ZERO)
        for j in range(x.shape[0]):
            value = load_row(x, j, at)
            q = _nearest_values(inverse * value)
            wq = load_row(w, j, at) * q
            lx, l2 = lx + wq * value, l2 + wq * q
        if is_first:
            scale = where(l2 > splat(ZERO), lx / l2, splat(ZERO))
            best = scale * lx
        else:
            is_better = (l2 > splat(ZERO)) & (lx * lx > best * l2)
            scale = where(is_better, lx / l2, scale)
            best = where(is_better, scale * lx, best)
    return where(magnitudes(extreme) < splat(TINY), splat(ZERO), scale)


@kernel
def nearest_value(x: np.float32) -> np.float32:
    """The table's value nearest to x, the higher of two as near."""
    q = np.float32(IQ4[0])
    for k in range(15):
        q += ZERO if x < np.float32(_BOUNDS[k]) else np.float32(IQ4[k + 1] - IQ4[k])
    return q


@kernel
def _nearest_index(x: np.float32) -> np.uint8:
    """The index of the table's value nearest to x."""
    index = np.uint8(0)
    for k in range(15):
        index += np.uint8(0) if x < np.float32(_BOUNDS[k]) else np.uint8(1)
    return index


@kernel
def pack_run(x: Lanes, inverse: Lanes, at: int, records: Records) -> None:
    """Indices of 32 elements in 16 bytes: element j in the low half of byte j, element 16 + j in the high half."""
    for j in range(16):
        for i in range(LANES):
            low, high = _nearest_index(inverse[i] * x[j, i]), _nearest_index(inverse[i] * x[16 + j, i])
            records[at + j, i] = low | (high << np.uint8(4))


@kernel
def encode_mxfp4(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Blocks of 32 with a power of two each; importance is not used, as in ggml."""
    codes = np.empty(32, np.uint8)
    for b in range(len(blocks)):
        exponent = power(blocks[b])
        step = half_scale(exponent)
        for j in range(32):
            codes[j] = nearest_e2m1(blocks[b, j], step)
        out[b, 0] = np.uint8(exponent)
        for j in range(16):
            out[b, 1 + j] = codes[j] | (codes[16 + j] << np.uint8(4))


@kernel
def power(x: Blocks) -> np.int32:
    """The stored exponent of a block's scale; 0 of zeros."""
    largest = np.int32(0)
    for j in range(len(x)):
        largest = max(largest, bits(x[j]) & np.int32(0x7FFF_FFFF))
    if largest == 0:
        return np.int32(0)
    # C's log2f rounds to float32 before floor does
    logarithm = np.float32(math.log2(np.float64(float_of(largest))))
    return (np.int32(math.floor(logarithm)) + np.int32(125)) & np.int32(255)


@kernel
def half_scale(exponent: np.int32) -> np.float32:
    """Half of 2^(exponent - 127)."""
    return float_of(np.int32(0x0020_0000) << exponent if exponent < 2 else (exponent - np.int32(1)) << np.int32(23))


@kernel
def nearest_e2m1(x: np.float32, step: np.float32) -> np.uint8:
    """The code of the value nearest to x / step, the smaller of two as near; zero has no sign."""
    code, error = np.uint8(0), abs(x)
    for k in range(1, 8):
        off = abs(np.float32(E2M1[k]) * step - abs(x))
        code = np.uint8(k) if off < error else code
        error = off if off < error else error
    return code | np.uint8(8) if x < ZERO and code > np.uint8(0) else code
