"""Reads the weights of a .pte back: matrices by the names of their data, the other constants by their hashes.

The file's constants have no names, so the writer adds one entry of named data, a JSON object of label to SHA-256,
by which each is found among them.
Source: executorch `schema/program.fbs`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
from executorch.exir._serialize._program import _get_extended_header

from ...convert.errors import InputError
from ...convert.model.graph import Role
from ...convert.model.tensor import ArrayTensor, ReshapedTensor, StackedTensor, TensorView
from ...convert.plans import TensorPlan
from ..encoded import EncodedTensor, StoredPart
from ..target import Address
from .layout import INDEX_KEY, VECTORS, n_cuts, part_sizes, parts_of

_HEADER_BYTES = 64
Place = tuple[int, int]  # offset in the file and bytes
_ALIGNMENT = 16  # of constants, so that a constant's end is known to within one less


@dataclass(frozen=True)
class Program:
    """The program part of a .pte. Units: `base` is the byte the segments' offsets count from."""

    path: Path
    content: Any
    base: int

    def segment(self, index: int) -> tuple[int, int]:
        """Offset in the file and bytes."""
        found = self.content.segments[index]
        return self.base + found.offset, found.size


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
        start, n_bytes = program.segment(index)
        if start + n_bytes > size:
            raise InputError(f"{path}: segment {index} ends at byte {start + n_bytes}, the file at {size}")
    return program


def read_weights(path: Path, tensors: Sequence[TensorPlan]) -> dict[Address, TensorView]:
    """Every planned tensor, decoded on demand.

    Raises: InputError for a file that is not ours, or lacks a tensor.
    """
    program = read_program(path)
    named = {entry.key: program.segment(entry.segment_index) for entry in program.content.named_data}
    if INDEX_KEY not in named:
        raise InputError(f"{path}: has no '{INDEX_KEY}' entry: not written by lfm-convert")
    index = json.loads(_bytes(path, *named.pop(INDEX_KEY)))
    places = {key.rpartition(".")[0]: place for key, place in named.items()} | _constants(program, tensors, index)
    return {(tensor.role, tensor.layer): _tensor(path, tensor, places) for tensor in tensors if tensor.role}


def _constants(program: Program, tensors: Sequence[TensorPlan], index: dict[str, str]) -> dict[str, Place]:
    """Where each constant of the index lies, by label."""
    sizes = {n_bytes for tensor in tensors for label, n_bytes in part_sizes(tensor) if label in index}
    segment = program.content.constant_segment
    start, n_bytes = program.segment(segment.segment_index)
    ends = [*segment.offsets[1:], n_bytes]
    found = {}
    for low, high in zip(segment.offsets, ends, strict=True):
        for size in (n for n in sizes if high - low - _ALIGNMENT < n <= high - low):
            found[hashlib.sha256(_bytes(program.path, start + low, size)).hexdigest()] = (start + low, size)
    return {label: found[digest] for label, digest in index.items() if digest in found}


def _tensor(path: Path, tensor: TensorPlan, places: dict[str, Place]) -> TensorView:
    for label, n_bytes in part_sizes(tensor):
        if places.get(label, (0, 0))[1] != n_bytes:
            raise InputError(f"{path}: '{label}' is missing or not of {n_bytes} bytes")
    labels = [[f"{tensor.name}.{i}.{part.name}" for part in parts_of(tensor)] for i in range(n_cuts(tensor))]
    if tensor.role in VECTORS:
        pieces = [np.frombuffer(_bytes(path, *places[label]), "<f4") for (label,) in labels]
        is_kernel = tensor.role is Role.CONV_KERNEL
        return ArrayTensor(tensor.name, np.stack(pieces, axis=1) if is_kernel else np.concatenate(pieces))
    shape = (tensor.view.n_rows // len(labels), tensor.view.n_cols)
    cuts: list[TensorView] = [
        EncodedTensor(names[0], shape, tensor.encoding, tuple(StoredPart(path, places[name][0]) for name in names))
        for names in labels
    ]
    return cuts[0] if len(cuts) == 1 else ReshapedTensor(StackedTensor(tensor.name, cuts), tensor.shape)


def _bytes(path: Path, offset: int, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(n_bytes)
