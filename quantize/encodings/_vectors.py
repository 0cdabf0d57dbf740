"""A row of float32 that compiled code holds as one value: its sums stay in registers while a loop runs over elements.

Loops over lanes leave it to the compiler to find vectors, and it keeps what they sum in memory. Here `WIDTH` lanes are one
value of LLVM, which makes of it as many instructions as the CPU needs. None is reordered or fused, so the bits are those
of `WIDTH` scalars.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic

from ._jit import LANES, ROUNDER, Lanes, kernel

# Of 32 each operation is at least two instructions, so that one waits less for the one before.
WIDTH = 32
Vector = Any  # WIDTH float32: numba has no types that others could check
_FLOATS, _WORDS = (ir.VectorType(kind, WIDTH) for kind in (ir.FloatType(), ir.IntType(32)))
_MASKS = ir.VectorType(ir.IntType(1), WIDTH)
_FLOAT_BYTES = 4
_LINE = 16  # floats that a line of the cache holds
_TILE = 16  # rows and columns that are transposed at once


class _Lanes(types.Type):
    """What numba knows of a vector: the type that LLVM has for it."""

    def __init__(self, name: str, stored: Any) -> None:
        super().__init__(name=f"{name}x{WIDTH}")
        self.stored = stored


@register_default(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: _Lanes) -> None:
        super().__init__(manager, kind, kind.stored)


_floats, _mask = _Lanes("float32", _FLOATS), _Lanes("bool", _MASKS)


def _operator(symbol: Callable[..., Any], result: Any, operand: Any, generate: Callable[[Any, Any, Any], Any]) -> None:
    """Lets compiled code apply an operator of Python to two vectors."""

    class Typed(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(result, operand, operand)]  # noqa: RUF012  # numba reads it so

    infer_global(symbol)(Typed)
    lower_builtin(symbol, operand, operand)(lambda _context, builder, _signature, given: generate(builder, *given))


_operator(operator.add, _floats, _floats, ir.IRBuilder.fadd)
_operator(operator.sub, _floats, _floats, ir.IRBuilder.fsub)
_operator(operator.mul, _floats, _floats, ir.IRBuilder.fmul)
_operator(operator.truediv, _floats, _floats, ir.IRBuilder.fdiv)
_operator(operator.lt, _mask, _floats, lambda builder, a, b: builder.fcmp_ordered("<", a, b))
_operator(operator.gt, _mask, _floats, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_operator(operator.eq, _mask, _floats, lambda builder, a, b: builder.fcmp_ordered("==", a, b))
_operator(operator.and_, _mask, _mask, ir.IRBuilder.and_)


# Declared is a signature of numba's, with what generates code for it. Rows of arrays are C's, as kernels make them.


@intrinsic  # type: ignore[untyped-decorator]
def splat(_typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        lone = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), given[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(lone, lone, ir.Constant(_WORDS, 0))

    return _floats(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_row(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    """`WIDTH` elements of a row from a column on."""

    def generate(context: Any, builder: Any, kinds: Any, given: Any) -> Any:
        return builder.load(_pointer(context, builder, kinds.args[0], given), align=_FLOAT_BYTES)

    return _floats(array, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_row(_typing: Any, array: Any, row: Any, column: Any, vector: Any) -> Any:
    """Writes them."""

    def generate(context: Any, builder: Any, kinds: Any, given: Any) -> Any:
        builder.store(given[3], _pointer(context, builder, kinds.args[0], given), align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _floats), generate


@intrinsic  # type: ignore[untyped-decorator]
def _transpose(_typing: Any, source: Any, row: Any, column: Any, out: Any, out_row: Any, out_column: Any) -> Any:
    """Writes the columns of a tile of `_TILE` rows and as many columns as rows of another array."""
    tile = ir.VectorType(ir.FloatType(), _TILE)

    def generate(context: Any, builder: Any, kinds: Any, given: Any) -> Any:
        def pointer(which: int, row: int) -> Any:
            place = [given[which], builder.add(given[which + 1], ir.Constant(given[1].type, row)), given[which + 2]]
            return _pointer(context, builder, kinds.args[which], place, tile)

        rows = [builder.load(pointer(0, row), align=_FLOAT_BYTES) for row in range(_TILE)]
        # to riffle the first half of what there is with the second, as often as halves halve, transposes
        halves = [[start + k // 2 + k % 2 * _TILE for k in range(_TILE)] for start in (0, _TILE // 2)]
        for _ in range(_TILE.bit_length() - 1):
            pairs = list(zip(rows[: _TILE // 2], rows[_TILE // 2 :], strict=True))
            rows = [builder.shuffle_vector(*pair, _indices(half)) for pair in pairs for half in halves]
        for row, values in enumerate(rows):
            builder.store(values, pointer(3, row), align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), generate


def _indices(values: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), list(values))


def _pointer(context: Any, builder: Any, kind: Any, given: Any, vector: Any = _FLOATS) -> Any:
    """Where an array [rows, columns] of float32 has a row and column: given are all three."""
    array = context.make_array(kind)(context, builder, given[0])
    element = cgutils.get_item_pointer(context, builder, kind, array, [given[1], given[2]])
    return builder.bitcast(element, ir.PointerType(vector))


@intrinsic  # type: ignore[untyped-decorator]
def where(_typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """The lanes of one where a comparison holds, and of the other elsewhere."""
    return _floats(_mask, _floats, _floats), lambda _context, builder, _kinds, given: builder.select(*given)


def _of_bits(generate: Callable[[Any, Any], Any]) -> Any:
    """A function of the bits of each lane."""

    def declare(_typing: Any, vector: Any) -> Any:
        def generate_all(_context: Any, builder: Any, _kinds: Any, given: Any) -> Any:
            return builder.bitcast(generate(builder, builder.bitcast(given[0], _WORDS)), _FLOATS)

        return _floats(_floats), generate_all

    return intrinsic(declare)


def staircase(bounds: Sequence[float], values: Sequence[float]) -> Any:
    """A function of vectors: the first value below the first bound, the next from there on, and so forth."""

    def declare(_typing: Any, vector: Any) -> Any:
        def generate(_context: Any, builder: Any, _kinds: Any, given: Any) -> Any:
            found = ir.Constant(_FLOATS, values[0])
            for bound, value in zip(bounds, values[1:], strict=True):
                is_below = builder.fcmp_ordered("<", given[0], ir.Constant(_FLOATS, bound))
                found = builder.select(is_below, found, ir.Constant(_FLOATS, value))
            return found

        return _floats(_floats), generate

    return intrinsic(declare)


_MAGNITUDE, _SIGN, _LOW_BITS, _EXPONENT_OF_UNITS = (
    ir.Constant(_WORDS, bits) for bits in (0x7FFF_FFFF, 0x8000_0000, 0x7F_FFFF, 0x4B00_0000)
)
magnitudes = _of_bits(lambda builder, words: builder.and_(words, _MAGNITUDE))
negative = _of_bits(lambda builder, words: builder.xor(words, _SIGN))
# The low 23 bits as those of a float32 from 2^23 to 2^24, whose last bit is a unit.
_wrapped = _of_bits(lambda builder, words: builder.or_(builder.and_(words, _LOW_BITS), _EXPONENT_OF_UNITS))


@kernel
def nearest_levels(values: Vector, low: Vector, high: Vector) -> Vector:
    """What `level` of `_jit` gives of each, as float32: also of what is beyond 2^22, infinite or NaN.

    low and high are plus `ROUNDER`.
    """
    found = _wrapped(values + splat(ROUNDER))
    found = where(found > low, found, low)
    return where(found < high, found, high) - splat(ROUNDER)


@kernel
def empty_lanes(n_rows: int, width: int) -> Lanes:
    """Rows of `LANES` or `WIDTH` floats, which begin where a line of the cache does: none is read from two."""
    flat = np.empty(n_rows * width + _LINE, np.float32)
    skipped = (-flat.ctypes.data // _FLOAT_BYTES) % _LINE
    return flat[skipped : skipped + n_rows * width].reshape(n_rows, width)


@kernel
def load(source: Lanes, first: int, out: Lanes) -> None:
    """Blocks first, first + 1, … of source [blocks, elements] as columns of out; zeros past the last."""
    n_elements, n = source.shape[1], min(LANES, source.shape[0] - first)
    n_whole = n - n % _TILE
    for j in range(0, n_elements, _TILE):
        for i in range(0, n_whole, _TILE):
            _transpose(source, first + i, j, out, j, i)
    for i in range(n_whole, LANES):
        for j in range(n_elements):
            out[j, i] = source[first + i, j] if i < n else np.float32(0)
