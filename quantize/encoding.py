"""What an encoding is, and the registry of all of them.

An encoding is a storage format for the rows of a matrix: pure functions, no state. Every part of it
is cut by rows (rows [a, b) of the matrix are rows [a, b) of each part, or those of a part that has one
for several), so that a tensor of any size is encoded range by range and each range is written at a known offset.
Adding one is one file in `encodings/` and one line in `_MODULES`.
"""

from __future__ import annotations

import copy
import importlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.errors import UsageError
from ..graph.tensor import Shape

Bytes = NDArray[Any]

# At the end of a name: the same format, refined.
_REFINED = "_refined"


@dataclass(frozen=True)
class Part:
    """One stored array of an encoded matrix. `row_shape` is what one row of the matrix becomes, or `n_together` of them:
    the last row of a matrix may be for fewer.

    Units: `row_nbytes` in bytes.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    n_together: int = 1

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    def n_rows(self, height: int) -> int:
        """Rows of the part for a matrix of `height` rows."""
        return -(-height // self.n_together)

    def offset(self, row: int, height: int) -> int:
        """Bytes before a row of a stack of matrices of `height` rows, each of which the part is of by itself.

        The row is the first of those that are stored together, or the end of a matrix.
        """
        matrix, within = divmod(row, height)
        return (matrix * self.n_rows(height) + within // self.n_together) * self.row_nbytes


def matrix_height(shape: Shape) -> int:
    """Rows of each matrix that a tensor of this shape is a stack of."""
    return shape[-2] if len(shape) > 1 else 1


class Encoding(ABC):
    """A storage format for rows.

    `block` is the number of consecutive elements of a row that share scales: a row must be a multiple.
    `tile_rows` is the number of rows that are stored interleaved: ranges of rows start and end at multiples of it, or at
    the end of a matrix where the last tile `may_be_short`.
    `class_name` is the quality class (f32, f16, q8, q4, …): what its kernels compute in follows from it.
    `weighs_columns` says whether importance changes what is stored; `ggml_type` is that of `enum ggml_type`, for what
    GGUF stores. Some encoders `can_refine`: look longer for scales of lower error, which are stored in the same format.
    """

    name: str
    block: int = 1
    tile_rows: int = 1
    may_be_short: ClassVar[bool] = False
    class_name: str
    weighs_columns: bool = False
    ggml_type: ClassVar[int | None] = None
    can_refine: ClassVar[bool] = False
    is_refined: bool = False

    @property
    def activation_block(self) -> int | None:
        """How many activations the format's CPU kernels round to 8 bits together, 0 for a whole row; None for floats."""
        return None

    @property
    def stored_name(self) -> str:
        """What a reader of the format calls it, refined or not."""
        return stored_name(self.name)

    def refined(self) -> Self:
        """The same format with scales of lower error; itself if the encoder cannot refine, or does."""
        if not self.can_refine or self.is_refined:
            return self
        found = copy.copy(self)
        found.name += _REFINED
        found.is_refined = found.weighs_columns = True
        return found

    def refusal(self, n_cols: int) -> str | None:
        """Why rows of this length cannot be encoded, or None."""
        if n_cols % self.block:
            return f"rows of {n_cols} are not a multiple of the block of {self.block}"
        return None

    @abstractmethod
    def parts(self, n_cols: int) -> tuple[Part, ...]:
        """The stored arrays of a matrix with rows of n_cols, in storage order."""

    @abstractmethod
    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """Encodes [n, n_cols] into one array [n, *row_shape] per part.

        `importance` [n_cols] weighs the squared error of each column; an encoding may ignore it.
        """

    @abstractmethod
    def decode(self, *parts: Bytes) -> Float32:
        """The float32 values [n, n_cols] that parts [n, *row_shape] stand for."""

    def row_nbytes(self, n_cols: int) -> int:
        """Bytes of one encoded row, all parts, of an encoding with a row of every part for each."""
        return sum(part.row_nbytes for part in self.parts(n_cols))

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a tensor, all parts."""
        n_rows = math.prod(shape[:-1])
        return sum(part.offset(n_rows, matrix_height(shape)) for part in self.parts(shape[-1]))


_MODULES = (
    "floats", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
    "int_block", "mlx_affine", "mlx_fp", "et_int", "et_tiles", "coreml_int", "coreml_lut", "ct_int", "ct_fp8", "ct_fp4",
)  # fmt: skip


def stored_name(name: str) -> str:
    """The name of the format that an encoding of this name is stored in; see `Encoding.stored_name`."""
    return name.removesuffix(_REFINED)


@cache
def _registry() -> dict[str, Encoding]:
    package = __package__ + ".encodings"
    found = [e for module in _MODULES for e in importlib.import_module(f"{package}.{module}").ENCODINGS]
    return {encoding.name: encoding for encoding in found}


def encoding_names() -> tuple[str, ...]:
    """All registered names; that of an encoder which can refine may also end in `_refined`."""
    return tuple(_registry())


@cache
def ggml_types() -> dict[str, int]:
    """What GGUF stores, by ggml's name: `enum ggml_type`."""
    types = {name: encoding.ggml_type for name, encoding in _registry().items()}
    return {name: number for name, number in types.items() if number is not None}


@cache
def get_encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises: UsageError listing the names there are.
    """
    found = _registry().get(stored_name(name))
    if found is not None and name.endswith(_REFINED):
        found = found.refined() if found.can_refine else None
    if found is None:
        raise UsageError(f"unknown encoding '{name}': expected one of {', '.join(encoding_names())}")
    return found
