"""The weights of an ONNX file: which initializers there are, and where their bytes lie.

Weights that multiply the same input are stacked into one matrix (q, k and v; gate and up), so that a
runtime reads the input once. Bytes go to `<file>.onnx_data`, then `<file>.onnx_data_1`, …, each below
the 2 GiB that a browser can hold in one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ...graph.graph import Weight
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.policy import Policy
from ..plans import Fallback, FilePlan, Placement, TensorPlan

CHUNK_BYTES = (2 << 30) - (1 << 20)
_ALIGNMENT = 64

# Stored parts as ONNX element types; bfloat16 is not used by any quant of this target.
_ELEMENT_TYPES = {"<f4": "FLOAT", "<f2": "FLOAT16", "|u1": "UINT8"}


@dataclass(frozen=True)
class Initializer:
    """One stored array: a part of a matrix. Units: bytes."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    placement: Placement

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.dims, dtype=np.int64)) * self.dtype.itemsize

    @property
    def location(self) -> str:
        """The data file as the graph names it: relative to the graph's own folder."""
        return PurePosixPath(self.placement.path).name

    def to_proto(self) -> Any:
        """The initializer as a reference into its data file."""
        from onnx import StringStringEntryProto, TensorProto

        return TensorProto(
            name=self.name,
            data_type=TensorProto.DataType.Value(_ELEMENT_TYPES[self.dtype.str]),
            dims=self.dims,
            data_location=TensorProto.EXTERNAL,
            external_data=[
                StringStringEntryProto(key="location", value=self.location),
                StringStringEntryProto(key="offset", value=str(self.placement.offset)),
                StringStringEntryProto(key="length", value=str(self.nbytes)),
            ],
        )


@dataclass(frozen=True)
class Matrix:
    """A stored matrix [n_rows, n_cols]: the names of its parts, in the encoding's order."""

    encoding: Encoding
    n_rows: int
    n_cols: int
    parts: tuple[str, ...]


@dataclass
class WeightStore:
    """Assigns places while a graph is built; knows every byte afterwards."""

    policy: Policy
    data_path: str
    initializers: list[Initializer] = field(default_factory=list)
    tensors: list[TensorPlan] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def groups(self, weights: Sequence[Weight]) -> list[list[Weight]]:
        """The weights in order, those that share an encoding with their neighbour together."""
        grouped: list[list[Weight]] = []
        for weight in weights:
            if grouped and self._encoding(grouped[-1][-1]) is self._encoding(weight):
                grouped[-1].append(weight)
            else:
                grouped.append([weight])
        return grouped

    def _encoding(self, weight: Weight) -> Encoding:
        return self.policy.choose(weight).encoding

    def add(
        self, name: str, weights: Sequence[Weight], shape: tuple[int, ...] | None = None, *, stack: int = 0
    ) -> Matrix:
        """Stores weights of one encoding on top of each other.

        Float parts may be given another shape; parts of a `stack` of so many matrices are [stack, n_rows, one row's].
        """
        encoding = self._encoding(weights[0])
        for weight in weights:
            choice = self.policy.choose(weight)
            if choice.reason:
                self.fallbacks.append(Fallback(weight.view.name, choice.wanted, choice.encoding.name, choice.reason))
        n_rows, n_cols = sum(w.view.n_rows for w in weights), weights[0].view.n_cols
        parts = []
        for part in encoding.parts(n_cols):
            if stack:
                dims: tuple[int, ...] = (stack, n_rows // stack, math.prod(part.row_shape))
            else:
                dims = (n_rows, *part.row_shape) if shape is None else shape
            part_name = name if part.name == "values" and encoding.block == 1 else f"{name}.{part.name}"
            parts.append(self._place(part_name, part.dtype, dims))
        self._plan_members(weights, encoding, parts)
        return Matrix(encoding, n_rows, n_cols, tuple(p.name for p in parts))

    def add_constant(self, name: str, view: TensorView, encoding_name: str) -> str:
        """Stores a table the config determines; returns its initializer's name."""
        encoding = get_encoding(encoding_name)
        (part,) = encoding.parts(view.n_cols)
        placed = self._place(name, part.dtype, view.shape)
        self.tensors.append(
            TensorPlan(
                name=name,
                role=None,
                layer=None,
                shape=view.shape,
                encoding=encoding,
                view=view,
                placements=(placed.placement,),
            )
        )
        return name

    def _place(self, name: str, dtype: np.dtype[Any], dims: tuple[int, ...]) -> Initializer:
        nbytes = int(np.prod(dims, dtype=np.int64)) * dtype.itemsize
        start = -(-self._ends[-1] // _ALIGNMENT) * _ALIGNMENT if self._ends else 0
        if not self._ends or start + nbytes > CHUNK_BYTES:
            self._ends.append(0)
            start = 0
        chunk = len(self._ends) - 1
        self._ends[-1] = start + nbytes
        path = self.data_path + (f"_{chunk}" if chunk else "")
        self.initializers.append(Initializer(name, dtype, dims, Placement(path, start)))
        return self.initializers[-1]

    def _plan_members(self, weights: Sequence[Weight], encoding: Encoding, parts: Sequence[Initializer]) -> None:
        first_row = 0
        for weight in weights:
            placements = tuple(
                Placement(stored.placement.path, stored.placement.offset + first_row * part.row_nbytes)
                for part, stored in zip(encoding.parts(weight.view.n_cols), parts, strict=True)
            )
            self.tensors.append(
                TensorPlan(
                    name=weight.view.name, role=weight.role, layer=weight.layer, shape=weight.shape,
                    encoding=encoding, view=weight.view, placements=placements,
                )
            )  # fmt: skip
            first_row += weight.view.n_rows

    def files(self) -> tuple[FilePlan, ...]:
        """The data files with their exact sizes."""
        return tuple(FilePlan(self.data_path + (f"_{i}" if i else ""), end) for i, end in enumerate(self._ends))
