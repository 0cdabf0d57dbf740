"""Types and constants of a program, read from their messages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....graph.errors import InputError
from .element_types import BY_NAME, BY_SPEC, ElementType
from .operators.operator import MAX_NUMBERS
from .package import Package, shown
from .weights import Cast, Dense, Held, Palettes, Scaled, Shape, Stored, Weight

_STRING = 2
# The fields that a protobuf keeps an immediate tensor's numbers in, by the type of numpy that they come as.
_FIELDS = {"floats": "<f4", "doubles": "<f8", "ints": "<i4", "longInts": "<i8", "bools": "|b1"}


@dataclass(frozen=True)
class TensorType:
    """An element type and a shape; None for a size, or a whole shape, that only the call knows."""

    element: ElementType
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.element.name} [{sizes}]"

    def admits(self, shape: Shape) -> bool:
        """Whether a tensor of that shape is one of this type."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == size for want, size in zip(self.shape, shape, strict=True)
        )

    @property
    def known_size(self) -> int:
        """Elements, where sizes that only the call knows, and empty ones, count as 1."""
        return math.prod(size or 1 for size in self.shape or ())


def tensor_type(message: Any, what: str) -> TensorType:
    """A `ValueType` that is a tensor. Raises: InputError for another kind, or an element type of no program."""
    if message.WhichOneof("type") != "tensorType":
        raise InputError(f"{what} is of the kind {message.WhichOneof('type')}: expected a tensor")
    tensor = message.tensorType
    element = BY_SPEC.get(tensor.dataType)
    if element is None:
        raise InputError(f"{what} is of element type {tensor.dataType}, which is not evaluated")
    shape: list[int | None] = []
    for dimension in tensor.dimensions:
        kind = dimension.WhichOneof("dimension")
        if kind == "unknown" and dimension.unknown.variadic:
            return TensorType(element, None)
        shape.append(int(dimension.constant.size) if kind == "constant" else None)
    return TensorType(element, tuple(shape))


def read_value(message: Any, package: Package, what: str) -> Weight | str:
    """A `Value`: a tensor where it lies, or a string.

    Raises: InputError for another kind, or numbers that are not all there.
    """
    if message.type.WhichOneof("type") == "tensorType" and message.type.tensorType.dataType == _STRING:
        strings = message.immediateValue.tensor.strings.values
        if len(strings) != 1:
            raise InputError(f"{what}: expected one string, found {len(strings)}")
        return str(strings[0])
    kind = tensor_type(message.type, what)
    if kind.shape is None or None in kind.shape:
        raise InputError(f"{what} is a constant of no fixed shape, {kind}")
    shape = tuple(size for size in kind.shape if size is not None)
    if 0 in shape and max(shape) > MAX_NUMBERS:
        raise InputError(f"{what} is a constant {kind}")
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        file = package.weights(blob.fileName)
        data = file.constant(int(blob.offset), kind.element, shape)
        return Stored(kind.element, shape, data, (str(file.path), int(blob.offset), kind.element.name, shape))
    data = _immediate(message.immediateValue.tensor, kind.element, shape, what)
    return Stored(kind.element, shape, data, (kind.element.name, shape, data.tobytes()))


def _immediate(tensor: Any, element: ElementType, shape: Shape, what: str) -> NDArray[np.uint8]:
    """The bytes of a tensor that lies in the protobuf, as a file of weights would have them."""
    field = tensor.WhichOneof("value")
    size = math.prod(shape)
    if field == "bytes":
        data = np.frombuffer(tensor.bytes.values, np.uint8)
        if data.size != -(-size * element.bits // 8):
            raise InputError(f"{what} has {data.size} bytes for {element.name} {list(shape)}")
        return data
    if field not in _FIELDS or element.bits < 8:
        raise InputError(f"{what} has its {element.name} numbers in the field '{field}'")
    numbers = np.array(getattr(tensor, field).values, _FIELDS[field])
    if numbers.size != size:
        raise InputError(f"{what} has {numbers.size} numbers for {element.name} {list(shape)}")
    return numbers.astype(element.stored).view(np.uint8)


def combine(kind: str, parts: dict[str, Weight | str], result: TensorType, what: str) -> Weight:
    """The constant that an operation `constexpr_…` makes of its operands.

    Raises: InputError for operands that do not fit each other.
    """
    try:
        found = _COMBINED[kind](result.element, **parts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{what} ({kind}) has operands that do not fit: {shown(str(error), 300)}") from None
    if not result.admits(found.shape):
        raise InputError(f"{what} ({kind}) is {result}, its operands give {list(found.shape)}")
    return found


def _fits(blocks: Shape, shape: Shape) -> None:
    if len(blocks) != len(shape) or any(n < 1 or size % n for n, size in zip(blocks, shape, strict=True)):
        raise ValueError(f"{list(blocks)} blocks do not divide {list(shape)}")


def _blockwise(element: ElementType, *, data: Weight, scale: Weight, offset: Weight | None = None) -> Weight:
    _fits(scale.shape, data.shape)
    _is(scale, element)
    if offset is not None and offset.shape != scale.shape:
        raise ValueError(f"offset {list(offset.shape)}, scale {list(scale.shape)}")
    if offset is not None and not offset.element.is_float:
        _is(offset, data.element)
    return Scaled(element, data, scale, offset)


def _is(part: Weight, element: ElementType) -> None:
    if part.element != element:
        raise ValueError(f"{part.element.name} where {element.name} is expected")


def _affine(element: ElementType, *, quantized_data: Weight, scale: Weight, zero_point: Weight, axis: Weight) -> Weight:
    _is(scale, element)
    blocks = [1] * len(quantized_data.shape)
    along = int(axis.whole()) % len(blocks)
    if scale.shape or zero_point.shape:  # one of them may still be one number
        blocks[along] = quantized_data.shape[along]
    parts = (_reshaped(_broadcast(part, blocks[along]), tuple(blocks)) for part in (scale, zero_point))
    return Scaled(element, quantized_data, *parts)


def _broadcast(part: Weight, size: int) -> Weight:
    return Dense(part.element, np.broadcast_to(part.whole(), (size,)), ("broadcast", size, part.key))


def _reshaped(part: Weight, shape: Shape) -> Weight:
    return Dense(part.element, part.whole().reshape(shape), ("reshaped", shape, part.key))


def _palettes(
    element: ElementType,
    *,
    indices: Weight,
    lut: Weight,
    vector_axis: Weight | None = None,
    shape: Weight | None = None,
) -> Weight:
    if shape is not None:  # before iOS 18: one table, and indices as a row of bytes
        whole = tuple(int(size) for size in shape.whole())
        bits = int(math.log2(lut.size))
        packed = np.ascontiguousarray(indices.whole()).view(np.uint8)
        indices = Stored(BY_NAME[f"uint{bits}"], whole, packed, ("bits", indices.key))
        lut = _reshaped(lut, (1,) * len(whole) + (lut.size, 1))
    _is(lut, element)
    _fits(lut.shape[:-2], indices.shape)
    if lut.shape[-2] != 1 << indices.element.bits:
        raise ValueError(f"{lut.shape[-2]} entries of a table for indices of {indices.element.bits} bits")
    if lut.shape[-1] == 1:
        return Palettes(element, indices, lut)
    if vector_axis is None:
        raise ValueError("vectors have no axis")
    return Dense(element, _vectors(indices.whole(), lut.whole(), int(vector_axis.whole())), ("vectors", indices.key))


def _vectors(indices: Held, tables: Held, axis: int) -> Held:
    """Entries of tables of vectors, which lie along an axis of the result."""
    axis %= indices.ndim
    places: list[NDArray[np.intp]] = []
    for at, (size, blocks) in enumerate(zip(indices.shape, tables.shape, strict=False)):
        spread = [1] * indices.ndim
        spread[at] = size
        places.append((np.arange(size) // (size // blocks)).reshape(spread))
    found = np.moveaxis(tables[(*places, indices.astype(np.intp))], -1, axis + 1)
    shape = list(indices.shape)
    shape[axis] *= tables.shape[-1]
    return found.reshape(shape)


def _sparse(element: ElementType, *, nonzero_data: Weight, mask: Weight, shape: Weight | None = None) -> Weight:
    if shape is None:
        is_set = mask.whole() != 0
    else:  # before iOS 18: the bits as a row of bytes
        whole = tuple(int(size) for size in shape.whole())
        bits = np.unpackbits(mask.whole().view(np.uint8), bitorder="little")[: math.prod(whole)]
        is_set = bits.reshape(whole) != 0
    values = np.zeros(is_set.shape, nonzero_data.element.held)
    values[is_set] = nonzero_data.whole()
    return Dense(element, values, ("sparse", nonzero_data.key, mask.key))


def _cast(element: ElementType, *, source_val: Weight, output_dtype: str) -> Weight:
    if BY_NAME.get(output_dtype) != element:
        raise ValueError(f"a cast to {output_dtype} is declared {element.name}")
    return Cast(element, source_val)


_COMBINED: dict[str, Any] = {
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_affine_dequantize": _affine,
    "constexpr_lut_to_dense": _palettes,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_cast": _cast,
}
COMBINATIONS = frozenset(_COMBINED)
