"""Compiles the encoders' inner loops with numba; only encoding imports this, never planning or decoding.

ggml's searches run over the elements of a block in order, in float32. Here `LANES` blocks lie side by side:
arrays are [elements, LANES], an outer loop walks the elements in the reference's order and an inner one the
lanes, which the compiler turns into vector instructions. No operation is reordered or fused, so the bits are C's.
Source: llama.cpp `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba.core import event, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ...graph.dtypes import DType
from ..compiling import tell
from ._kinds import FLOAT_KINDS

LANES = 64
Lanes = NDArray[np.float32]  # [elements, LANES], or [LANES]
Records = NDArray[np.uint8]  # [bytes, LANES], or [blocks, bytes]

F16, BF16 = FLOAT_KINDS[DType.F16], FLOAT_KINDS[DType.BF16]

_F = TypeVar("_F", bound=Callable[..., Any])
# 1.5 · 2^23: adding it to a float32 below 2^22 rounds that to an integer, ties to even, in the low bits; taking it away
# again leaves the integer.
ROUNDER = np.float32(12582912)
_MANTISSA, _MIDDLE = np.int32(0x007F_FFFF), np.int32(0x0040_0000)
# Bits of float32: all but the sign, infinity, 0.5, 2^16, the least normal float16 2^-14, and what takes an exponent
# counted from 127 to one from 15.
_MAGNITUDE, _INFINITY, _HALF_ONE = np.int32(0x7FFF_FFFF), np.int32(0x7F80_0000), np.int32(0x3F00_0000)
_TWO_TO_16, _LEAST_NORMAL_HALF, _REBIAS = np.int32(0x4780_0000), np.int32(0x3880_0000), np.int32(0x3800_0000)


def _cache_folder() -> str:
    """A folder named after the sources of all kernels: numba itself looks only at the file a function stands in."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("_*.py")):
        digest.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(next(p for p in (base, *base.parents) if p.exists()), os.W_OK):
        base = Path(tempfile.gettempdir())
    return str(base / "lfm-convert" / digest.hexdigest()[:16])


def kernel(function: _F) -> _F:
    """Compiles a function when it is first called, keeps the machine code on disk, and runs it without the GIL."""
    with _ONE_AT_A_TIME:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _CACHE
        try:
            compiled: _F = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = before
    return compiled


_CACHE = _cache_folder()


class _Compiling(event.Listener):  # type: ignore[misc]  # numba has no types
    """Tells of kernels that are compiled, not of those that these call; what comes from the folder is not compiled."""

    def __init__(self) -> None:
        self._open = threading.local()

    def on_start(self, event: Any) -> None:
        depth = getattr(self._open, "depth", 0)
        self._open.depth = depth + 1
        module = event.data["dispatcher"].py_func.__module__
        if depth == 0 and module.startswith(__package__):
            name = module.rpartition(".")[2].removeprefix("_kernels").strip("_")
            tell(f"compiling the kernels of {name} for this processor, once: they are kept in {_CACHE}")

    def on_end(self, event: Any) -> None:
        self._open.depth -= 1


event.register("numba:compile", _Compiling())
# Kernels are imported by whichever thread needs them first, and numba has one folder for all: in the midst of another
# thread's change it takes the working directory for it.
_ONE_AT_A_TIME = threading.Lock()


def _cast(source: Any, result: Any, generate: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A function of compiled code that turns one machine type into another by instructions of LLVM."""

    def declare(context: Any, value: Any) -> Any:
        return result(source), lambda _context, builder, _signature, given: generate(builder, given[0])

    cast: Callable[[Any], Any] = intrinsic(declare)
    return cast


# The bits of a float32 as int32, and back.
bits = _cast(types.float32, types.int32, lambda builder, value: builder.bitcast(value, ir.IntType(32)))
float_of = _cast(types.int32, types.float32, lambda builder, value: builder.bitcast(value, ir.FloatType()))


@kernel
def half(value: np.float32) -> np.uint16:
    """The bits of the nearest float16, ties to even; infinity beyond, a quiet NaN of NaN.

    LLVM's own conversion is an instruction of some CPUs and a call of a library that numba lacks on the others.
    """
    found = bits(value)
    magnitude = np.int32(found & _MAGNITUDE)
    # adding 0.5 leaves multiples of the least subnormal in the low bits, rounded as the hardware adds
    subnormal = bits(float_of(magnitude) + np.float32(0.5)) - _HALF_ONE
    normal = (magnitude - _REBIAS + np.int32(0xFFF) + ((magnitude >> 13) & 1)) >> 13
    beyond = np.int32(0x7E00) if magnitude > _INFINITY else np.int32(0x7C00)
    kept = subnormal if magnitude < _LEAST_NORMAL_HALF else normal
    return np.uint16((beyond if magnitude >= _TWO_TO_16 else kept) | ((found >> 16) & np.int32(0x8000)))


@kernel
def widened(stored: np.uint16) -> np.float32:
    """The float32 of a float16's bits."""
    magnitude, exponent = (np.int32(stored) & 0x7FFF) << 13, np.int32(stored) & 0x7C00
    normal = magnitude + _REBIAS + (_REBIAS if exponent == 0x7C00 else 0)
    tiny = float_of(np.int32(magnitude + _LEAST_NORMAL_HALF)) - float_of(_LEAST_NORMAL_HALF)
    value = tiny if exponent == 0 else float_of(np.int32(normal))
    return -value if np.int32(stored) & 0x8000 else value


@kernel
def rounded(value: np.float32, kind: int) -> np.float32:
    """The nearest value of one of `FLOAT_KINDS`, ties to even."""
    if kind == F16:
        return widened(half(value))
    return bfloat16(value) if kind == BF16 else value


@kernel
def bfloat16(value: np.float32) -> np.float32:
    """The nearest bfloat16, ties to even."""
    found = bits(value)
    return float_of(np.int32((found + np.int32(0x7FFF) + ((found >> 16) & np.int32(1))) & np.int32(-0x1_0000)))


@kernel
def magnitude(x: NDArray[np.float32]) -> np.int32:
    """Bits of the largest magnitude: floats of one sign are in order as integers, whose maximum is a vector instruction."""
    largest = np.int32(0)
    for j in range(len(x)):
        largest = max(largest, np.int32(bits(x[j]) & _MAGNITUDE))
    return largest


@kernel
def ordered(word: np.int32) -> np.int32:
    """Bits of a float as an integer in the float's order, and back."""
    return np.int32(word ^ ((word >> np.int32(31)) & _MAGNITUDE))


@kernel
def nearest(value: np.float32) -> np.int32:
    """ggml's `nearest_int`, which beyond 2^22, infinite and NaN gives what the bits happen to be."""
    return np.int32((bits(value + ROUNDER) & _MANTISSA) - _MIDDLE)


@kernel
def level(value: np.float32, low: np.int32, high: np.int32) -> np.int32:
    """The nearest integer in low … high."""
    return max(low, min(high, nearest(value)))


@kernel
def load_importance(importance: NDArray[np.float32], first: int, out: Lanes) -> None:
    """The importance [row blocks, elements] of blocks first, first + 1, … of rows laid end to end, as columns."""
    n_blocks, n_elements = importance.shape
    for start in range(0, n_elements, 16):
        for i in range(LANES):
            block = (first + i) % n_blocks
            for j in range(start, start + 16):
                out[j, i] = importance[block, j]


@kernel
def store(records: Records, first: int, out: Records) -> None:
    """Columns of records [bytes, LANES] as rows first, first + 1, … of out [blocks, bytes]."""
    for i in range(min(LANES, out.shape[0] - first)):
        for j in range(records.shape[0]):
            out[first + i, j] = records[j, i]


@kernel
def store_half(value: np.float32, records: Records, at: int, lane: int) -> np.float32:
    """Writes a float16 into bytes at, at + 1 of a lane; returns it widened."""
    stored = half(value)
    records[at, lane] = np.uint8(stored & np.uint16(255))
    records[at + 1, lane] = np.uint8(stored >> np.uint16(8))
    return widened(stored)
