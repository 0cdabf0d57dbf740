"""GGUF Q6_K: 256 elements in 210 bytes, 6.5625 bits each; symmetric, with a scale per 16 elements.

| bytes | type | meaning |
|---|---|---|
| 0-127 | uint8[2][64] | ql: bits 0-3 of the levels, two halves of 128 elements |
| 128-191 | uint8[2][32] | qh: bits 4-5 of the levels, two halves of 128 elements |
| 192-207 | int8[16] | scale of each run of 16 elements, in units of d |
| 208-209 | float16 | d |

Of a half, element j + 32k (j < 32, k < 4) has its low bits in ql byte j + 32(k mod 2), in the low half for
k < 2 and the high half for others, and its high bits in qh byte j from bit 2k on.
value = d * scale * (level - 32), level 0-63.
Source: llama.cpp `ggml-quants.c`, `quantize_row_q6_K_ref`, `make_qx_quants`.
"""

from __future__ import annotations

import numpy as np

from ...convert.errors import InputError
from ...convert.model.dtypes import Float32
from ..encoding import Encoding
from ._blocks import BlockEncoding, Levels, Records, column, to_half

_RUN = 16  # elements that share a scale
_ZERO = np.float32(1e-15)  # smaller magnitudes count as zero
_LOW, _HIGH = np.float32(-32), np.float32(31)
# Steps tried for a run: its extreme over -(32 + 0.1 i).
_TRIALS = tuple(np.float32(-32) - np.float32(0.1) * np.float32(i) for i in range(-9, 10) if i != 0)


class Q6_K(BlockEncoding):
    """Six bits around zero, two levels of scales."""

    name = "Q6_K"
    class_name = "q6"
    block = 256
    layout = np.dtype([("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", 16), ("d", "<f2")])

    def _encode(self, blocks: Float32, out: Records) -> None:
        n = len(blocks)
        runs = blocks.reshape(-1, _RUN)
        scales, steps = _search(runs)
        by_block = scales.reshape(n, -1)
        largest = by_block[np.arange(n), np.abs(by_block).argmax(axis=1)]
        empty = np.abs(largest) < _ZERO
        inverse = np.float32(-128) / largest
        out["d"] = np.where(empty, np.float16(0), to_half(np.where(empty, np.float32(0), 1 / inverse)))
        units = np.minimum(np.rint(inverse[:, None] * by_block), 127)
        out["scales"] = np.where(empty[:, None], 0, units).astype(np.int8)
        stored = (column(out["d"]) * out["scales"]).reshape(-1, 1)
        levels = _round(runs / stored)
        # A run whose stored scale is zero keeps the levels of the search; an empty block is all zero bytes.
        unset = np.flatnonzero(stored == 0)
        levels[unset] = _round(runs[unset] * steps[unset, None])
        levels[np.isnan(steps)] = -32
        levels = levels.reshape(n, 256)
        levels[empty] = -32
        _pack((levels + 32).astype(np.uint8), out)

    def _decode(self, records: Records) -> Float32:
        ql, qh = records["ql"].reshape(-1, 2, 1, 64), records["qh"].reshape(-1, 2, 1, 32)
        low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 2, 4, 32)
        high = (qh >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
        levels = (low | (high << 4)).astype(np.float32).reshape(-1, 16, _RUN) - 32
        scales = column(records["d"]) * records["scales"]
        values: Float32 = scales[:, :, None] * levels
        return values.reshape(-1, 256)


def _search(runs: Float32) -> tuple[Float32, Float32]:
    """The scale of each run of 16 that minimises the squared error weighted by x².

    Returns scales [n] and the inverse steps [n] whose levels gave them; a run of zeros has scale 0, step NaN.
    The sums run over the elements in order, as in C: x is laid out [16, n] and rows are added one by one.
    """
    extreme = runs[np.arange(len(runs)), np.abs(runs).argmax(axis=1)]
    x = np.ascontiguousarray(runs.T)
    weight = x * x
    weighted = weight * x
    inverse = np.float32(-32) / extreme
    sum_lx, sum_l2 = _sums(x, weight, weighted, inverse)
    scales = np.where(sum_l2 == 0, np.float32(0), sum_lx / sum_l2)
    best = scales * sum_lx
    for trial in _TRIALS:
        step = trial / extreme
        sum_lx, sum_l2 = _sums(x, weight, weighted, step)
        better = np.flatnonzero((sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2))
        inverse[better] = step[better]
        scales[better] = sum_lx[better] / sum_l2[better]
        best[better] = scales[better] * sum_lx[better]
    zero = np.abs(extreme) < _ZERO
    scales[zero], inverse[zero] = 0, np.nan
    if not np.isfinite(scales).all():
        raise InputError("a block's values are too large for Q6_K: choose a wider encoding")
    return scales, inverse


def _sums(x: Float32, weight: Float32, weighted: Float32, inverse: Float32) -> tuple[Float32, Float32]:
    """Sums over the first axis of weight · x · l and weight · l², with levels l = round(x · inverse)."""
    levels = _round(x * inverse)
    sum_lx = (weighted * levels).sum(axis=0)
    weight_l = weight * levels
    weight_l *= levels
    return sum_lx, weight_l.sum(axis=0)


def _round(steps: Float32) -> Float32:
    """Nearest level in -32 … 31, ties to even, in place."""
    np.clip(steps, _LOW, _HIGH, out=steps)
    return np.rint(steps, out=steps)


def _pack(levels: Levels, out: Records) -> None:
    quarter = levels.reshape(-1, 2, 4, 32)
    low = quarter & 15
    out["ql"][:, :, :32] = low[:, :, 0] | (low[:, :, 2] << 4)
    out["ql"][:, :, 32:] = low[:, :, 1] | (low[:, :, 3] << 4)
    high = quarter >> 4
    out["qh"] = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)


ENCODINGS: tuple[Encoding, ...] = (Q6_K(),)
