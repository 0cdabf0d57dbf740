"""Operations along axes: sums, extremes, orders, norms. Source: coremltools 9.0 `mil/ops/defs/iOS15/reduction.py`,
`normalization.py`, `tensor_operation.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .operator import Operator

Array = Any


def _reduction(function: Callable[..., Array]) -> Operator:
    def apply(x: Array, axes: Array = None, keep_dims: Array = False) -> Array:
        along = None if axes is None else tuple(int(axis) for axis in axes)
        return function(x, axis=along, keepdims=bool(keep_dims))

    return Operator(apply)


def _arg(function: Callable[..., Array]) -> Operator:
    """The place of an extreme, the first of equal ones."""

    def apply(x: Array, axis: Array = -1, keep_dims: Array = False, output_dtype: str = "int32") -> Array:
        return function(x, axis=int(axis), keepdims=bool(keep_dims))

    return Operator(apply)


def _mean(x: Array, *, axis: Any, keepdims: bool) -> Array:
    found = np.mean(x, axis=axis, keepdims=keepdims)
    return found if x.dtype.kind == "f" else np.trunc(found).astype(x.dtype)


def _l2_norm_of(x: Array, *, axis: Any, keepdims: bool) -> Array:
    return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))


def _log_sum_exp(x: Array, *, axis: Any, keepdims: bool) -> Array:
    top = np.max(x, axis=axis, keepdims=True)
    sums = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return sums if keepdims else np.squeeze(sums, axis)


def _order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Places from the greatest down, or from the least up; of equal numbers the first comes first."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - flipped, axis)


def _argsort(x: Array, axis: Array = -1, ascending: Array = False) -> Array:
    return _order(x, int(axis), ascending=bool(ascending))


def _topk(
    x: Array,
    k: Array = 1,
    axis: Array = -1,
    ascending: Array = False,
    sort: Array = True,
    return_indices: Array = True,
    output_indices_dtype: str = "int32",
) -> Array:
    along, count = int(axis), int(k)
    count = x.shape[along] if count == -1 else count
    if not 0 < count <= x.shape[along]:
        raise ValueError(f"there are no {count} of {x.shape[along]} numbers")
    places = np.take(_order(x, along, ascending=bool(ascending)), np.arange(count), axis=along)
    values = np.take_along_axis(x, places, along)
    return (values, places) if return_indices else values


def _cumsum(x: Array, axis: Array = 0, exclusive: Array = False, reverse: Array = False) -> Array:
    along = int(axis)
    ordered = np.flip(x, along) if reverse else x
    sums = np.cumsum(ordered, axis=along, dtype=x.dtype)
    if exclusive:
        sums = sums - ordered
    return np.flip(sums, along) if reverse else sums


def _layer_norm(x: Array, axes: Array = None, gamma: Array = None, beta: Array = None, epsilon: Array = 1e-5) -> Array:
    along = tuple(range(x.ndim)) if axes is None else tuple(int(axis) % x.ndim for axis in axes)
    centred = x - x.mean(axis=along, keepdims=True)
    found = centred / np.sqrt(np.mean(np.square(centred), axis=along, keepdims=True) + epsilon)
    shape = [size if axis in along else 1 for axis, size in enumerate(x.shape)]
    found = found if gamma is None else found * gamma.reshape(shape)
    return found if beta is None else found + beta.reshape(shape)


def _l2_norm(x: Array, epsilon: Array = 1e-6) -> Array:
    return x / np.sqrt(np.sum(np.square(x), axis=(-3, -2, -1), keepdims=True) + epsilon)


def _batch_norm(
    x: Array, mean: Array, variance: Array, gamma: Array = None, beta: Array = None, epsilon: Array = 1e-5
) -> Array:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    found = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    found = found if gamma is None else found * gamma.reshape(shape)
    return found if beta is None else found + beta.reshape(shape)


def _attention(query: Array, key: Array, value: Array, attn_mask: Array = None) -> Array:
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == np.bool_ else scores + attn_mask
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.matmul(powers / powers.sum(axis=-1, keepdims=True), value)


REDUCTIONS = {
    "argsort": Operator(_argsort),
    "batch_norm": Operator(_batch_norm, alike=("x", "mean", "variance", "gamma", "beta")),
    "cumsum": Operator(_cumsum),
    "l2_norm": Operator(_l2_norm),
    "layer_norm": Operator(_layer_norm, alike=("x", "gamma", "beta")),
    "reduce_argmax": _arg(np.argmax),
    "reduce_argmin": _arg(np.argmin),
    "reduce_l1_norm": _reduction(lambda x, **kept: np.sum(np.abs(x), **kept)),
    "reduce_l2_norm": _reduction(_l2_norm_of),
    "reduce_log_sum_exp": _reduction(_log_sum_exp),
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(_mean),
    "reduce_min": _reduction(np.min),
    "reduce_prod": _reduction(np.prod),
    "reduce_sum": _reduction(np.sum),
    "reduce_sum_square": _reduction(lambda x, **kept: np.sum(np.square(x), **kept)),
    "scaled_dot_product_attention": Operator(_attention, alike=("query", "key", "value")),
    "topk": Operator(_topk),
}
