"""Operations on each number by itself. Source: coremltools 9.0 `mil/ops/defs/iOS15/elementwise_*.py`, `activation.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .operator import Operator, refuse_huge

Array = Any  # of numpy, of any element type


def _unary(function: Callable[[Array], Array]) -> Operator:
    def apply(x: Array) -> Array:
        return function(x)

    return Operator(apply)


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    def apply(x: Array, y: Array) -> Array:
        refuse_huge(np.broadcast_shapes(x.shape, y.shape))
        return function(x, y)

    return Operator(apply, alike=("x", "y"))


def _real_div(x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        raise ValueError("what it gives for integers is not documented")
    return x / y


def _each(function: Callable[[float], float], x: Array) -> Array:
    """A function that numpy does not have, in double precision."""
    found = np.fromiter(map(function, x.ravel().tolist()), np.float64, x.size)
    return found.astype(np.float32).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (np.tanh(0.5 * x) + 1)  # the same, and no exponential that overflows


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _erf(x: Array) -> Array:
    return _each(math.erf, x)


def _gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * _sigmoid(1.702 * x)
    raise ValueError(f"its mode '{mode:.40}' is unknown")


def _softmax(x: Array, axis: Array = -1) -> Array:
    powers = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return powers / powers.sum(axis=int(axis), keepdims=True)


def _rsqrt(x: Array, epsilon: Array = 1e-12) -> Array:
    return 1 / np.sqrt(x + epsilon)


def _inverse(x: Array, epsilon: Array = 1e-4) -> Array:
    return 1 / (x + epsilon)


def _log(x: Array, epsilon: Array = 1e-45) -> Array:
    return np.log(x + epsilon)


def _clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(np.maximum(x, alpha), beta)


def _leaky_relu(x: Array, alpha: Array) -> Array:
    return np.where(x >= 0, x, alpha * x)


def _linear_activation(x: Array, alpha: Array, beta: Array) -> Array:
    return alpha * x + beta


def _threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0)


def _select(cond: Array, a: Array, b: Array) -> Array:
    refuse_huge(np.broadcast_shapes(cond.shape, a.shape, b.shape))
    return np.where(cond, a, b)


_CASTS = {"fp16": "<f4", "fp32": "<f4", "bool": "|b1"} | {
    name: np.dtype(name).str for name in ("int8", "int16", "int32", "uint8", "uint16")
}


def _cast(x: Array, dtype: str) -> Array:
    if dtype not in _CASTS:
        raise ValueError(f"casts to '{dtype:.40}' are unknown")
    return x.astype(_CASTS[dtype])


ELEMENTWISE = {
    "abs": _unary(np.abs),
    "acos": _unary(np.arccos),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "ceil": _unary(np.ceil),
    "cos": _unary(np.cos),
    "cosh": _unary(np.cosh),
    "erf": _unary(_erf),
    "exp": _unary(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary(np.floor),
    "identity": _unary(lambda x: x),
    "logical_not": _unary(np.logical_not),
    "relu": _unary(lambda x: np.maximum(x, 0)),
    "relu6": _unary(lambda x: np.clip(x, 0, 6)),
    "round": _unary(np.round),
    "sigmoid": _unary(_sigmoid),
    "sign": _unary(np.sign),
    "silu": _unary(_silu),
    "sin": _unary(np.sin),
    "sinh": _unary(np.sinh),
    "softplus": _unary(_softplus),
    "softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "add": _binary(np.add),
    "equal": _binary(np.equal),
    "floor_div": _binary(np.floor_divide),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_xor": _binary(np.logical_xor),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.mod),
    "mul": _binary(np.multiply),
    "not_equal": _binary(np.not_equal),
    "pow": _binary(np.power),
    "real_div": _binary(_real_div),
    "sub": _binary(np.subtract),
    "cast": Operator(_cast),
    "clip": Operator(_clip, alike=("x", "alpha", "beta")),
    "gelu": Operator(_gelu),
    "inverse": Operator(_inverse),
    "leaky_relu": Operator(_leaky_relu),
    "linear_activation": Operator(_linear_activation),
    "log": Operator(_log),
    "rsqrt": Operator(_rsqrt),
    "select": Operator(_select, alike=("a", "b")),
    "softmax": Operator(_softmax),
    "threshold": Operator(_threshold),
}
