"""Operations that move numbers, or make them of nothing. Source: coremltools 9.0 `mil/ops/defs/iOS15/
tensor_transformation.py`, `tensor_operation.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .operator import Operator, refuse_huge

Array = Any
# What is filled in by default, and what one-hot vectors are of.
_ZERO = np.zeros((), np.float32)
_ONE, _NONE = np.ones((), np.int32), np.zeros((), np.int32)


def _ints(values: Array) -> list[int]:
    return [int(value) for value in values]


def _expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(_ints(axes)))


def _squeeze(x: Array, axes: Array = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(_ints(axes)))


def _reshape(x: Array, shape: Array) -> Array:
    """0 keeps the size of the axis at its place, -1 is what remains."""
    sizes = _ints(shape)
    if 0 in sizes and len(sizes) != x.ndim:
        raise ValueError(f"the 0 in {sizes} stands for no axis of {list(x.shape)}")
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _transpose(x: Array, perm: Array) -> Array:
    return np.transpose(x, _ints(perm))


def _concat(values: list[Array], axis: Array, interleave: Array = False) -> Array:
    along = int(axis)
    if not interleave:
        return np.concatenate([np.atleast_1d(value) for value in values], axis=along)
    along %= values[0].ndim
    shape = list(values[0].shape)
    shape[along] *= len(values)
    return np.stack(values, axis=along + 1).reshape(shape)


def _stack(values: list[Array], axis: Array) -> Array:
    return np.stack(values, axis=int(axis))


def _split(x: Array, axis: Array, num_splits: Array = None, split_sizes: Array = None) -> tuple[Array, ...]:
    along = int(axis)
    if split_sizes is None:
        return tuple(np.split(x, int(num_splits), axis=along))
    sizes = _ints(split_sizes)
    if sum(sizes) != x.shape[along] or min(sizes) < 0:
        raise ValueError(f"{sizes} do not add up to {x.shape[along]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=along))


def _tile(x: Array, reps: Array) -> Array:
    times = _ints(reps)
    refuse_huge(size * n for size, n in zip(x.shape, times, strict=True))
    return np.tile(x, times)


def _pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array = 0) -> Array:
    """`pad` is of the last axes, [before, after] each."""
    widths = [(0, 0)] * (x.ndim - len(pad) // 2) + [(int(a), int(b)) for a, b in pad.reshape(-1, 2)]
    refuse_huge(size + sum(width) for size, width in zip(x.shape, widths, strict=True))
    if mode == "constant":
        return np.pad(x, widths, constant_values=constant_val)
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge"}
    return np.pad(x, widths, mode=modes[mode])


def _shape(x: Array) -> Array:
    return np.array(x.shape, np.int32)


def _fill(shape: Array, value: Array = _ZERO) -> Array:
    return np.full(refuse_huge(shape), value)


def _fill_like(ref_tensor: Array, value: Array = _ZERO) -> Array:
    return np.full(ref_tensor.shape, value)


def _range_1d(end: Array, start: Array, step: Array) -> Array:
    if not step:
        raise ValueError("its step is 0")
    refuse_huge([max(0, math.ceil((float(end) - float(start)) / float(step)))])
    return np.arange(start, end, step, dtype=end.dtype)


def _one_hot(
    indices: Array,
    one_hot_vector_size: Array,
    axis: Array = -1,
    on_value: Array = _ONE,
    off_value: Array = _NONE,
) -> Array:
    size = int(one_hot_vector_size)
    refuse_huge((*indices.shape, size))
    vectors: Array = np.where(indices[..., None] == np.arange(size), on_value, off_value)
    return np.moveaxis(vectors, -1, int(axis))


def _band_part(x: Array, lower: Array = -1, upper: Array = -1) -> Array:
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return np.where(kept, x, np.zeros((), x.dtype))


def _reverse(x: Array, axes: Array = None) -> Array:
    return np.flip(x, None if axes is None else tuple(_ints(axes)))


def _sliding_windows(x: Array, axis: Array, size: Array, stride: Array = 1) -> Array:
    along = int(axis) % x.ndim
    windows = np.moveaxis(np.lib.stride_tricks.sliding_window_view(x, int(size), along), -1, along + 1)
    return windows[(slice(None),) * along + (slice(None, None, int(stride)),)]


SHAPES = {
    "band_part": Operator(_band_part),
    "concat": Operator(_concat, alike=("values",)),
    "expand_dims": Operator(_expand_dims),
    "fill": Operator(_fill),
    "fill_like": Operator(_fill_like),
    "one_hot": Operator(_one_hot),
    "pad": Operator(_pad),
    "range_1d": Operator(_range_1d, alike=("end", "start", "step")),
    "reshape": Operator(_reshape),
    "reverse": Operator(_reverse),
    "shape": Operator(_shape),
    "sliding_windows": Operator(_sliding_windows),
    "split": Operator(_split),
    "squeeze": Operator(_squeeze),
    "stack": Operator(_stack, alike=("values",)),
    "tile": Operator(_tile),
    "transpose": Operator(_transpose),
}
