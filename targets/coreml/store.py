"""Where every constant lies in weight.bin, and what the specification says of it.

| bytes         | content                                                                  |
|---------------|--------------------------------------------------------------------------|
| 0-63          | number of records as uint32, the format's version 2 as uint32, zeros     |
| of each record, on a multiple of 64: | |
| 0-3, 4-7      | 0xDEADBEEF, type of elements                                             |
| 8-15, 16-23   | bytes of data, the byte of the file at which they start                  |
| 24-31, 32-63  | bits of padding after elements of less than a byte, zeros                |
| 64-           | data, row by row; of 4-bit elements the first in the low half of a byte  |

Source: coremltools `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`, as `libmilstoragepython` writes and reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ...graph.graph import Weight
from ...graph.roles import Role
from ...graph.tensor import TensorView, ZeroTensor
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.policy import Policy
from ..plans import Fallback, FilePlan, Placement, TensorPlan
from .evaluator.element_types import BY_SPEC
from .evaluator.weight_file import ALIGNMENT, SENTINEL, VERSION
from .mil import Dtype, Shape

_RECORD = struct.Struct("<IIQQQ")


@dataclass(frozen=True)
class Blob:
    """One record. Units: bytes; `offset` is that of the record, whose data follow it."""

    dtype: Dtype
    offset: int
    nbytes: int

    @property
    def data_offset(self) -> int:
        return self.offset + ALIGNMENT

    def record(self) -> bytes:
        element = BY_SPEC[self.dtype.value].in_blob
        return _RECORD.pack(SENTINEL, element, self.nbytes, self.data_offset, 0).ljust(ALIGNMENT, b"\0")


# Of a shape [..., n_rows, n_cols] the shapes that an operation wants its parts in, by the parts' names there.
_Shapes = Callable[[Shape], dict[str, tuple[Dtype, Shape]]]


def _by_row(shape: Shape) -> dict[str, tuple[Dtype, Shape]]:
    rows = (*shape[:-1], 1)
    return {"data": (Dtype.UINT8, shape), "scale": (Dtype.FLOAT16, rows), "offset": (Dtype.UINT8, rows)}


def _by_block(shape: Shape) -> dict[str, tuple[Dtype, Shape]]:
    blocks = (*shape[:-1], shape[-1] // 32)
    return {"data": (Dtype.UINT4, shape), "scale": (Dtype.FLOAT16, blocks), "offset": (Dtype.UINT4, blocks)}


def _by_table(shape: Shape) -> dict[str, tuple[Dtype, Shape]]:
    tables = (*shape[:-2], shape[-2] // 16, 1, 16, 1)
    return {"indices": (Dtype.UINT4, shape), "lut": (Dtype.FLOAT16, tables)}


# Each encoding as an operation, its parts in the encoding's order.
OPERATIONS: Mapping[str, tuple[str, _Shapes]] = {
    "F16": ("const", lambda shape: {"val": (Dtype.FLOAT16, shape)}),
    "F32": ("const", lambda shape: {"val": (Dtype.FLOAT32, shape)}),
    "coreml_int8": ("constexpr_blockwise_shift_scale", _by_row),
    "coreml_int4": ("constexpr_blockwise_shift_scale", _by_block),
    "coreml_pal4": ("constexpr_lut_to_dense", _by_table),
}


@dataclass(frozen=True)
class Stored:
    """A constant: its name, the shape and type it is decoded to, and the records of its parts."""

    name: str
    shape: Shape
    encoding: Encoding
    blobs: tuple[Blob, ...]

    @property
    def dtype(self) -> Dtype:
        return Dtype.FLOAT32 if self.encoding.name == "F32" else Dtype.FLOAT16

    def operation(self, shape: Shape) -> tuple[str, dict[str, tuple[Blob, Shape]]]:
        """The operation that gives it in a shape, and what it takes."""
        kind, shapes = OPERATIONS[self.encoding.stored_name]
        parts = shapes(shape).items()
        return kind, {name: (blob, part) for (name, (_, part)), blob in zip(parts, self.blobs, strict=True)}


@dataclass
class WeightStore:
    """Assigns places while a program is built; knows every byte afterwards."""

    policy: Policy
    path: str
    tensors: list[TensorPlan] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    _stored: dict[str, Stored] = field(default_factory=dict)
    _blobs: list[Blob] = field(default_factory=list)

    def weight(self, weight: Weight, view: TensorView | None = None) -> Stored:
        """A weight of the graph, stored once, or a view of it in its place."""
        name = weight_name(weight.role, weight.layer)
        if name not in self._stored:
            choice = self.policy.choose(weight)
            if choice.reason:
                self.fallbacks.append(Fallback(name, choice.wanted, choice.encoding.name, choice.reason))
            self._place(name, weight.role, weight.layer, weight.view if view is None else view, choice.encoding)
        return self._stored[name]

    def table(self, name: str, view: TensorView, encoding: str) -> Stored:
        """A constant that the config determines."""
        if name not in self._stored:
            self._place(name, None, None, view, get_encoding(encoding))
        return self._stored[name]

    def zeros(self, dtype: Dtype, count: int) -> Stored:
        """A bias of nothing, which coremltools writes for a product without one, too."""
        name, encoding = f"zeros_{dtype.name.lower()}_{count}", "F32" if dtype is Dtype.FLOAT32 else "F16"
        return self.table(name, ZeroTensor(name, (count,)), encoding)

    def _place(self, name: str, role: Role | None, layer: int | None, view: TensorView, encoding: Encoding) -> None:
        blobs = []
        dtypes = [dtype for dtype, _ in OPERATIONS[encoding.stored_name][1](view.shape).values()]
        for part, dtype in zip(encoding.parts(view.n_cols), dtypes, strict=True):
            end = self._blobs[-1].data_offset + self._blobs[-1].nbytes if self._blobs else ALIGNMENT
            blobs.append(Blob(dtype, -(-end // ALIGNMENT) * ALIGNMENT, view.n_rows * part.row_nbytes))
            self._blobs.append(blobs[-1])
        self._stored[name] = Stored(name, view.shape, encoding, tuple(blobs))
        self.tensors.append(
            TensorPlan(
                name=name,
                role=role,
                layer=layer,
                shape=view.shape,
                encoding=encoding,
                view=view,
                placements=tuple(Placement(self.path, blob.data_offset) for blob in blobs),
            )
        )

    def file(self) -> FilePlan:
        """weight.bin with its exact size."""
        end = self._blobs[-1].data_offset + self._blobs[-1].nbytes
        return FilePlan(self.path, -(-end // ALIGNMENT) * ALIGNMENT)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of all that is no data: the file's header, and the record before each part."""
        yield 0, struct.pack("<II", len(self._blobs), VERSION).ljust(ALIGNMENT, b"\0")
        for blob in self._blobs:
            yield blob.offset, blob.record()


def weight_name(role: Role, layer: int | None) -> str:
    """`ffn_gate_3`: what a weight is called in the program, and found by when it is read back."""
    return role.value if layer is None else f"{role.value}_{layer}"
