"""What an encoding is, and the registry of all of them.

An encoding is a storage format for the rows of a matrix: pure functions, no state. Every part of it
is cut by rows (rows [a, b) of the matrix are rows [a, b) of each part), so that a tensor of any size
is encoded range by range and each range is written at a known offset.
Adding one is one file in `encodings/` and one line in `_MODULES`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.errors import UsageError
from ..convert.model.dtypes import Float32

Bytes = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One stored array of an encoded matrix. `row_shape` is what one row of the matrix becomes.

    Units: `row_nbytes` in bytes.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]

    @property
    def row_nbytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize


class Encoding(ABC):
    """A storage format for rows.

    `block` is the number of consecutive elements of a row that share scales: a row must be a multiple.
    `tile_rows` is the number of rows that are stored interleaved: ranges of rows start and end at multiples of it.
    `class_name` is the quality class the validator's gates are stated for (f32, f16, q8, q4, …).
    """

    name: str
    block: int = 1
    tile_rows: int = 1
    class_name: str

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
        """Bytes of one encoded row, all parts."""
        return sum(part.row_nbytes for part in self.parts(n_cols))


_MODULES = (
    "floats", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
    "int_block", "mlx_affine", "mlx_fp", "et_int", "et_tiles",
)  # fmt: skip


@cache
def _registry() -> dict[str, Encoding]:
    package = __package__ + ".encodings"
    found = [e for module in _MODULES for e in importlib.import_module(f"{package}.{module}").ENCODINGS]
    return {encoding.name: encoding for encoding in found}


def encoding_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_registry())


def get_encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises: UsageError listing the names there are.
    """
    found = _registry().get(name)
    if found is None:
        raise UsageError(f"unknown encoding '{name}': expected one of {', '.join(_registry())}")
    return found
