"""Reads the weights of a .pte, and of a .ptd beside it: matrices by the names of their data, constants by their hashes.

A .pte's constants have no names, so the writer adds one entry of named data, a JSON object of label to SHA-256,
by which each is found among them.
Source: executorch `schema/program.fbs`, `extension/flat_tensor/serialize/flat_tensor.fbs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _get_extended_header
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorHeader, _deserialize_to_flat_tensor

from ...graph.errors import InputError
from ...graph.roles import Address, Trait
from ...graph.tensor import ArrayTensor, ReshapedTensor, StackedTensor, TensorView
from ...quantize.stored import EncodedTensor, StoredPart
from ..plans import TensorPlan
from .fused import operands
from .layout import INDEX_KEY, VECTORS, n_cuts, part_sizes, parts_of
from .stored import Piece, Stored

_HEADER_BYTES = 64
_ALIGNMENT = 16  # of constants, so that a constant's end is known to within one less


@dataclass(frozen=True)
class Place:
    """A range of a file. Units: bytes."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)

    def digest(self) -> str:
        """SHA-256 in hex."""
        return Stored([Piece("", self.path, self.offset, self.nbytes, np.dtype("u1"))]).sha256().hex()


@dataclass(frozen=True)
class Program:
    """The program part of a .pte. Units: `base` is the byte the segments' offsets count from."""

    path: Path
    content: Any
    base: int

    def segment(self, index: int) -> Place:
        found = self.content.segments[index]
        return Place(self.path, self.base + found.offset, found.size)

    def constants(self) -> Iterator[Place]:
        """Every constant, with up to `_ALIGNMENT` - 1 bytes of padding."""
        segment = self.content.constant_segment
        whole = self.segment(segment.segment_index)
        for low, high in pairwise([*segment.offsets, whole.nbytes]):
            yield Place(self.path, whole.offset + low, high - low)


def read_program(path: Path) -> Program:
    """Raises InputError for a file that is no .pte, or one whose segments lie beyond its end."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _get_extended_header(file.read(_HEADER_BYTES))
            if header is None or not header.is_valid():
                raise ValueError("no ExecuTorch header")
            if header.program_size > size:
                raise ValueError(f"the program takes {header.program_size} bytes, the file has {size}")
            file.seek(0)
            program = Program(path, _flatbuffer_to_program(file.read(header.program_size)), header.segment_base_offset)
    except Exception as error:  # flatbuffers raises struct.error, IndexError and others
        raise InputError(f"{path}: not a .pte file: {error}") from None
    for index in range(len(program.content.segments)):
        place = program.segment(index)
        if place.offset + place.nbytes > size:
            raise InputError(f"{path}: segment {index} ends at byte {place.offset + place.nbytes}, the file at {size}")
    return program


def read_number(path: Path, method: str) -> int | None:
    """What a method of a .pte gives that takes nothing and gives one number; None if it has no such method.

    Raises: InputError for a file that is no .pte.
    """
    plan = next((each for each in read_program(path).content.execution_plan if each.name == method), None)
    if plan is None or len(plan.outputs) != 1:
        return None
    found = getattr(plan.values[plan.outputs[0]].val, "int_val", None)
    return found if type(found) is int and found > 0 else None


def read_data(path: Path) -> dict[str, Place]:
    """What a .ptd holds, by key. Raises InputError for a file that is none, or is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = FlatTensorHeader.from_bytes(file.read(_HEADER_BYTES)[8:])
            if not header.is_valid():
                raise ValueError("no header of tensor data")
            file.seek(0)
            content = _deserialize_to_flat_tensor(file.read(header.flatbuffer_offset + header.flatbuffer_size))
    except Exception as error:  # flatc fails in ways of its own
        raise InputError(f"{path}: not a .ptd file: {error}") from None
    base = header.segment_base_offset
    for index, segment in enumerate(content.segments):
        if base + segment.offset + segment.size > size:
            end = base + segment.offset + segment.size
            raise InputError(f"{path}: segment {index} ends at byte {end}, the file at {size}")
    segments = [Place(path, base + segment.offset, segment.size) for segment in content.segments]
    return {entry.key: segments[entry.segment_index] for entry in content.named_data}


def read_weights(path: Path, tensors: Sequence[TensorPlan], *, data: Path | None = None) -> dict[Address, TensorView]:
    """Every planned tensor, decoded on demand, of a program and the file of its data if it has one.

    Raises: InputError for a file that is not ours, or lacks a tensor.
    """
    program = read_program(path)
    named = {entry.key: program.segment(entry.segment_index) for entry in program.content.named_data}
    if INDEX_KEY not in named:
        raise InputError(f"{path}: has no '{INDEX_KEY}' entry: not written by lfm-convert")
    index = json.loads(named.pop(INDEX_KEY).read())
    external = read_data(data) if data is not None else {}
    places = {key.rpartition(".")[0]: place for key, place in (named | external).items()}
    places |= _constants([*program.constants(), *external.values()], tensors, index)
    return {(tensor.role, tensor.layer): _tensor(path, tensor, places) for tensor in tensors if tensor.role}


def _constants(candidates: Sequence[Place], tensors: Sequence[TensorPlan], index: dict[str, str]) -> dict[str, Place]:
    """Where each constant of the index lies, by label."""
    fused = operands(tensors)
    sizes = {n_bytes for tensor in tensors for label, n_bytes in part_sizes(tensor) if label in index}
    sizes |= {operand.nbytes for operand in fused}
    found = {}
    for place in candidates:
        for size in (n for n in sizes if place.nbytes - _ALIGNMENT < n <= place.nbytes):
            cut = replace(place, nbytes=size)
            found[cut.digest()] = cut
    places = {label: found[digest] for label, digest in index.items() if digest in found}
    for operand in (each for each in fused if each.label in places):
        whole = places[operand.label]
        for tensor, expert, offset, n_bytes in operand.places():
            places[f"{tensor.name}.{expert}.tiles"] = Place(whole.path, whole.offset + offset, n_bytes)
    return places


def _tensor(path: Path, tensor: TensorPlan, places: dict[str, Place]) -> TensorView:
    for label, n_bytes in part_sizes(tensor):
        if label not in places or places[label].nbytes != n_bytes:
            raise InputError(f"{path}: '{label}' is missing or not of {n_bytes} bytes")
    labels = [[f"{tensor.name}.{i}.{part.name}" for part in parts_of(tensor)] for i in range(n_cuts(tensor))]
    if tensor.role in VECTORS:
        pieces = [np.frombuffer(places[label].read(), "<f4") for (label,) in labels]
        is_kernel = tensor.role.trait is Trait.KERNEL
        return ArrayTensor(tensor.name, np.stack(pieces, axis=1) if is_kernel else np.concatenate(pieces))
    shape = (tensor.view.n_rows // len(labels), tensor.view.n_cols)
    cuts: list[TensorView] = [
        EncodedTensor(
            names[0],
            shape,
            tensor.encoding,
            tuple(StoredPart(places[name].path, places[name].offset) for name in names),
        )
        for names in labels
    ]
    return cuts[0] if len(cuts) == 1 else ReshapedTensor(StackedTensor(tensor.name, cuts), tensor.shape)
