"""Products of matrices, and convolutions. Matrices that lie in the package are decoded and used a block of rows at a time.

Source: coremltools 9.0 `mil/ops/defs/iOS15/linear.py`, `conv.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..weights import Weight
from .operator import Operator, refuse_huge

Array = Any


def _linear(x: Array, weight: Array, bias: Array = None) -> Array:
    if isinstance(weight, Weight):
        found = np.concatenate(weight.over_blocks(lambda start, rows: _flat_product(x, rows.T)), axis=-1)
    else:
        found = _flat_product(x, weight.T)
    return found if bias is None else found + bias


def _flat_product(x: Array, matrix: Array) -> Array:
    """One product of all rows, however many axes they lie in: numpy would make one a matrix of them."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _matmul(x: Array, y: Array, transpose_x: Array = False, transpose_y: Array = False) -> Array:
    if isinstance(x, Weight):
        x = x.whole()
    x = np.swapaxes(x, -1, -2) if transpose_x else x
    if not isinstance(y, Weight):
        y = np.swapaxes(y, -1, -2) if transpose_y else y
        refuse_huge((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *x.shape[-2:-1], y.shape[-1]))
        return x @ y
    if len(y.shape) > 2:
        return _batches(x, y, transposed=bool(transpose_y))
    if transpose_y:
        return np.concatenate(y.over_blocks(lambda start, rows: _flat_product(x, rows.T)), axis=-1)
    sums = y.over_blocks(lambda start, rows: _flat_product(x[..., start : start + len(rows)], rows))
    return sum(sums[1:], start=sums[0])


def _batches(x: Array, y: Weight, *, transposed: bool) -> Array:
    """Products by a stack of matrices, a few of them at a time."""
    if len(y.shape) != 3:
        whole = np.swapaxes(y.whole(), -1, -2) if transposed else y.whole()
        return x @ whole
    stacked = x.reshape((1,) * (3 - x.ndim) + x.shape)
    if stacked.shape[-3] not in (1, y.shape[0]):
        raise ValueError(f"{list(x.shape)} and {list(y.shape)} do not fit")

    def product(start: int, rows: Array) -> Array:
        here = stacked if stacked.shape[-3] == 1 else stacked[..., start : start + len(rows), :, :]
        return here @ (np.swapaxes(rows, -1, -2) if transposed else rows)

    return np.concatenate(y.over_blocks(product), axis=-3)


def _conv(
    x: Array,
    weight: Array,
    bias: Array = None,
    strides: Array = None,
    pad_type: str = "valid",
    pad: Array = None,
    dilations: Array = None,
    groups: Array = 1,
) -> Array:
    """Shapes: x [N, C, *spatial], weight [M, C / groups, *kernel], result [N, M, *spatial]."""
    n_spatial, n_groups = x.ndim - 2, int(groups)
    steps = [1] * n_spatial if strides is None else [int(step) for step in strides]
    spread = [1] * n_spatial if dilations is None else [int(step) for step in dilations]
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], spread, strict=True)]
    widths = [(0, 0), (0, 0), *_padding(pad_type, pad, x.shape[2:], reach, steps)]
    if x.shape[1] != weight.shape[1] * n_groups or weight.shape[0] % n_groups:
        raise ValueError(f"{n_groups} groups of {list(weight.shape)} do not fit {list(x.shape)}")
    refuse_huge(size + sum(width) for size, width in zip(x.shape, widths, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, widths), reach, tuple(range(2, x.ndim)))
    every = tuple(slice(None, None, step) for step in steps)
    taps = tuple(slice(None, None, step) for step in spread)
    windows = windows[(slice(None), slice(None), *every, *taps)]
    places, kernel = windows.shape[2 : 2 + n_spatial], math.prod(weight.shape[2:])
    grouped = windows.reshape(len(x), n_groups, weight.shape[1], math.prod(places), kernel)
    kernels = weight.reshape(n_groups, -1, weight.shape[1], kernel)
    if weight.shape[1] == 1 and kernels.shape[1] == 1:
        found = np.einsum("ngpk,gk->ngp", grouped[:, :, 0], kernels[:, 0, 0])
    else:
        rows = np.moveaxis(grouped, 3, 2).reshape(len(x), n_groups, math.prod(places), -1)
        found = kernels.reshape(n_groups, kernels.shape[1], -1) @ np.swapaxes(rows, -1, -2)
    found = found.reshape(len(x), weight.shape[0], *places)
    return found if bias is None else found + bias.reshape(-1, *(1,) * n_spatial)


def _padding(pad_type: str, pad: Array, sizes: Any, reach: list[int], steps: list[int]) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis. Of an odd number `same` puts the one more after, `same_lower` before."""
    if pad_type == "valid":
        return [(0, 0)] * len(reach)
    if pad_type == "custom":
        return [(int(before), int(after)) for before, after in np.asarray(pad).reshape(-1, 2)]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"its pad_type '{pad_type:.40}' is unknown")
    found = []
    for size, width, step in zip(sizes, reach, steps, strict=True):
        total = max(0, (-(-size // step) - 1) * step + width - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if pad_type == "same" else (more, less))
    return found


def _einsum(values: list[Array], equation: str) -> Array:
    return np.einsum(equation.replace(" ", ""), *values)


PRODUCTS = {
    "conv": Operator(_conv, alike=("x", "weight", "bias")),
    "einsum": Operator(_einsum, alike=("values",)),
    "linear": Operator(_linear, stored=("weight",), alike=("x", "weight", "bias")),
    "matmul": Operator(_matmul, stored=("x", "y"), alike=("x", "y")),
}
