"""Messages of a Core ML specification that has an ML program: types, values, operations, functions, the model.

Field numbers are those of Apple's schema. Names of inputs and attributes are written in a fixed order, so that equal
programs are equal bytes.
Source: coremltools `mlmodel/format/MIL.proto`, `Model.proto`, `FeatureTypes.proto`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .wire import entries, number, packed, record, text

SPECIFICATION_VERSION = 9  # iOS 18, macOS 15
OPSET = "CoreML8"
WEIGHT_FILE = "@model_path/weights/weight.bin"

Shape = tuple[int, ...]


class Dtype(enum.Enum):
    """Types of elements by their number in MIL.proto."""

    BOOL = 1
    STRING = 2
    FLOAT16 = 10
    FLOAT32 = 11
    INT32 = 23
    UINT8 = 31
    UINT4 = 35


# Of inputs and outputs, as FeatureTypes.proto numbers them.
FEATURE_TYPES = {Dtype.FLOAT32: 65568, Dtype.INT32: 131104, Dtype.FLOAT16: 65552}


@dataclass(frozen=True)
class Feature:
    """An input, output or state of a function."""

    name: str
    dtype: Dtype
    shape: Shape
    description: str = ""


@cache
def tensor_type(dtype: Dtype, shape: Shape) -> bytes:
    dimensions = b"".join(record(3, record(1, number(1, size))) for size in shape)
    return record(1, number(1, dtype.value) + number(2, len(shape)) + dimensions)


def named_type(name: str, type_: bytes) -> bytes:
    return text(1, name) + record(2, type_)


def immediate(dtype: Dtype, shape: Shape, values: Sequence[bool | int | float | str]) -> bytes:
    """A value inside the specification."""
    match dtype:
        case Dtype.FLOAT16:
            held = record(7, record(1, np.array(values, "<f2").tobytes()))
        case Dtype.FLOAT32:
            held = record(1, record(1, np.array(values, "<f4").tobytes()))
        case Dtype.INT32:
            held = record(2, packed(1, [int(value) for value in values]))
        case Dtype.BOOL:
            held = record(3, packed(1, [int(value) for value in values]))
        case Dtype.STRING:
            held = record(4, b"".join(text(1, str(value)) for value in values))
        case _:
            raise ValueError(f"no immediate values of {dtype}")
    return record(2, tensor_type(dtype, shape)) + record(3, record(1, held))


def file_value(dtype: Dtype, shape: Shape, offset: int) -> bytes:
    """A value in weight.bin, whose record starts at `offset`. Units: bytes."""
    return record(2, tensor_type(dtype, shape)) + record(5, text(1, WEIGHT_FILE) + number(2, offset))


def operation(
    kind: str, inputs: Mapping[str, Sequence[str | bytes]], outputs: Sequence[bytes], attributes: Mapping[str, bytes]
) -> bytes:
    """Inputs are names of values, or values themselves; outputs are named types."""
    arguments = {
        name: b"".join(record(1, text(1, each) if isinstance(each, str) else record(2, each)) for each in bound)
        for name, bound in inputs.items()
    }
    return (
        text(1, kind)
        + entries(2, arguments)
        + b"".join(record(3, output) for output in outputs)
        + entries(5, attributes)
    )


def function(
    inputs: Sequence[Feature], states: Sequence[Feature], operations: Sequence[bytes], outputs: Sequence[str]
) -> bytes:
    named = [named_type(each.name, tensor_type(each.dtype, each.shape)) for each in inputs]
    named += [named_type(each.name, record(5, record(1, tensor_type(each.dtype, each.shape)))) for each in states]
    block = b"".join(text(2, name) for name in outputs) + b"".join(record(3, each) for each in operations)
    return b"".join(record(1, each) for each in named) + text(2, OPSET) + entries(3, {OPSET: block})


@dataclass(frozen=True)
class Signature:
    """What a function takes, remembers and gives."""

    name: str
    inputs: tuple[Feature, ...]
    states: tuple[Feature, ...]
    outputs: tuple[Feature, ...]


def model(
    functions: Mapping[str, bytes], signatures: Sequence[Signature], *, default: str, metadata: Mapping[str, object]
) -> bytes:
    """The whole specification. `metadata` has the texts of Model.proto's `Metadata` by their names there."""
    described = b"".join(record(20, _described(each)) for each in signatures)
    description = described + text(21, default) + record(100, _metadata(metadata))
    program = number(1, 1) + entries(2, functions)
    return number(1, SPECIFICATION_VERSION) + record(2, description) + record(502, program)


def _described(signature: Signature) -> bytes:
    return (
        text(1, signature.name)
        + b"".join(record(2, _feature(each)) for each in signature.inputs)
        + b"".join(record(3, _feature(each)) for each in signature.outputs)
        + b"".join(record(6, _feature(each, is_state=True)) for each in signature.states)
    )


def _feature(feature: Feature, *, is_state: bool = False) -> bytes:
    array = packed(1, feature.shape) + number(2, FEATURE_TYPES[feature.dtype])
    type_ = record(8, record(1, array)) if is_state else record(5, array)
    about = text(2, feature.description) if feature.description else b""
    return text(1, feature.name) + about + record(3, type_)


def _metadata(said: Mapping[str, object]) -> bytes:
    own = said.get("userDefined", {})
    assert isinstance(own, Mapping)
    numbers = {"shortDescription": 1, "versionString": 2, "author": 3, "license": 4}
    texts = b"".join(text(field, str(said[name])) for name, field in numbers.items() if said.get(name))
    return texts + b"".join(record(100, text(1, key) + text(2, value)) for key, value in own.items())
