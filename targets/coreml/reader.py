"""Reads a package's weights back: what its program says of each, by name, and the bytes in weight.bin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ...graph.roles import Address, Trait, find_role
from ...graph.tensor import TensorView
from ...quantize.encoding import get_encoding
from ...quantize.stored import EncodedTensor, StoredPart
from ..target import ListedTensor, NotJudged
from .evaluator.element_types import BY_SPEC, ElementType
from .evaluator.package import Package, open_package
from .mil import Shape
from .store import OPERATIONS, weight_name
from .transposed import Transposed

_CONST = "const"
# The part of a constant that has the constant's own shape.
_WHOLE = ("val", "data", "indices")
_NAME = re.compile(r"(?P<role>[a-z_]+?)(?:_(?P<layer>\d+))?")

# The parts of a constant by the names that its operation has for them: element type, shape, file, offset of its record.
Parts = Mapping[str, tuple[ElementType, Shape, str, int]]


def read_weights(paths: Sequence[Path]) -> dict[Address, TensorView]:
    """Every weight of the packages of a model of ours, decoded on demand.

    Raises: InputError for a package that is damaged, or whose functions have different weights, or if two packages have
    the same weight; NotJudged for one of another writer.
    """
    found: dict[Address, TensorView] = {}
    for path in paths:
        own = _weights(open_package(path))
        for role, layer in own.keys() & found.keys():
            raise InputError(f"{path}: has '{weight_name(role, layer)}', which a package before it has")
        found |= own
    return found


def _weights(package: Package) -> dict[Address, TensorView]:
    path = package.path
    found: dict[Address, tuple[str, Parts]] = {}
    for name, kind, parts in _constants(package):
        address = _address(name)
        if address is not None and found.setdefault(address, (kind, parts)) != (kind, parts):
            raise InputError(f"{path}: its functions take '{name}' from different places")
    if not found:
        raise NotJudged("the constants of a Core ML package do not say which weight they are")
    return {address: _view(package, address, *stored) for address, stored in found.items()}


def listed_constants(package: Package) -> list[ListedTensor]:
    """Every constant of a package that lies beside its program, whoever wrote it."""
    found = {name: (kind, parts) for name, kind, parts in _constants(package)}
    return [
        ListedTensor(name, _described(kind, parts), sum(_nbytes(*part[:2]) for part in parts.values()))
        for name, (kind, parts) in found.items()
    ]


def _constants(package: Package) -> Iterator[tuple[str, str, Parts]]:
    """Name, operation and parts of every constant that lies in a file, function by function."""
    functions = package.spec.mlProgram.functions
    for name in sorted(functions):
        for block in functions[name].block_specializations.values():
            for operation in block.operations:
                if operation.type == _CONST or operation.type.startswith("constexpr_"):
                    parts = dict(_parts(operation))
                    if parts and operation.outputs:
                        yield operation.outputs[0].name, operation.type, parts


def _parts(operation: Any) -> Iterator[tuple[str, tuple[ElementType, Shape, str, int]]]:
    values = {key: value for key, value in operation.attributes.items() if key != "name"}
    for key, argument in operation.inputs.items():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                values[key] = binding.value
    for key, value in sorted(values.items()):
        tensor = value.type.tensorType
        if value.WhichOneof("value") == "blobFileValue" and tensor.dataType in BY_SPEC:
            shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
            yield key, (BY_SPEC[tensor.dataType], shape, value.blobFileValue.fileName, value.blobFileValue.offset)


def _address(name: str) -> Address | None:
    """The weight that a constant of this name is."""
    match = _NAME.fullmatch(name)
    if match:
        with suppress(ValueError):
            return find_role(match["role"]), None if match["layer"] is None else int(match["layer"])
    return None


def _view(package: Package, address: Address, kind: str, parts: Parts) -> TensorView:
    """Raises InputError for a constant that no encoding of ours makes, or whose data are not all there."""
    name = f"{address[0].value} of layer {address[1]}" if address[1] is not None else address[0].value
    shape = next((parts[key][1] for key in _WHOLE if key in parts), ())
    stored = {key: (each[0].in_spec, each[1]) for key, each in parts.items()}
    for encoding_name, (operation, shapes) in OPERATIONS.items():
        if operation != kind or len(shape) < (1 if kind == _CONST else 2):
            continue
        made = {key: (dtype.value, size) for key, (dtype, size) in shapes(shape).items()}
        if made == stored:
            places = tuple(_place(package, parts[key]) for key in made)
            view: TensorView = EncodedTensor(name, shape, get_encoding(encoding_name), places)
            return Transposed(view) if address[0].trait is Trait.KERNEL else view
    raise InputError(f"{package.path}: '{name}' is stored as {_described(kind, parts)}: expected a format of ours")


def _place(package: Package, part: tuple[ElementType, Shape, str, int]) -> StoredPart:
    """Where data lie. Raises InputError if they are not those that the program speaks of, or not all there."""
    element, shape, file, offset = part
    weights = package.weights(file)
    weights.constant(offset, element, shape)
    return StoredPart(weights.path, weights.entry(offset).start)


def _described(kind: str, parts: Parts) -> str:
    elements = " ".join(each[0].name for each in parts.values())
    return elements if kind == _CONST else f"{kind.removeprefix('constexpr_')} {elements}"


def _nbytes(element: ElementType, shape: Shape) -> int:
    total = element.bits
    for size in shape:
        total *= size
    return -(-total // 8)
