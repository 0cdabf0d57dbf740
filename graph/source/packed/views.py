"""Weights that are decoded as their rows are read: codes times scales, whatever holds the codes.

Values are float32: the exact product of a code and a scale where float32 can hold it, else the nearest. That is what
each format's own library computes once its scales are float32; in 16 bits it rounds once more. The declared type,
by which targets choose theirs for what they do not round, is the one in which that library would save a plain checkpoint:
the scales' of integers, that of the model's config otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...codes import KIND_OF, Bytes, float_values, unpack
from ...dtypes import WEIGHT_DTYPES, DType, Float32, widen
from ...errors import InputError
from ...tensor import Shape, TensorView
from ..safetensors import StoredTensor

# Elements decoded at a time: their codes and products stay near the core.
_AT_ONCE = 1 << 18


class PackedTensor(TensorView):
    """A weight of codes; `main` is the stored tensor that most of its bytes lie in."""

    at_once = _AT_ONCE

    def __init__(self, name: str, dtype: DType, shape: Shape, main: StoredTensor) -> None:
        super().__init__(name, dtype, shape)
        self.main = main

    def _rows(self, start: int, stop: int) -> Float32:
        values = np.empty((stop - start, self.n_cols), np.float32)
        step = max(1, self.at_once // self.n_cols)
        with np.errstate(all="ignore"):  # what is not finite is refused, by its place
            for low in range(start, stop, step):
                high = min(low + step, stop)
                piece = values[low - start : high - start]
                self.decode(low, high, piece)
                self._refuse_not_finite(piece, low)
        return values

    @abstractmethod
    def decode(self, start: int, stop: int, out: Float32) -> None:
        """Writes rows [start, stop) into `out`."""

    def place(self, row: int) -> tuple[str, int]:
        return str(self.main.path), self.main.offset + self.main.nbytes * row // max(1, self.n_rows)

    def _refuse_not_finite(self, values: Float32, first_row: int) -> None:
        if np.isfinite(values).all():
            return
        row, column = np.argwhere(~np.isfinite(values))[0].tolist()
        index = (*np.unravel_index(first_row + row, self.shape[:-1]), column)
        place = ", ".join(str(int(i)) for i in index)
        raise InputError(
            f"{self.main.path}: tensor '{self.name}', decoded from '{self.main.stored_name}', holds "
            f"{values[row, column]} at [{place}]: expected finite weights"
        )


def numbers(tensor: StoredTensor, start: int, stop: int) -> Float32:
    """Elements of a flat tensor of floats of any width, or of bytes with a sign."""
    elements = tensor.elements(start, stop)
    if tensor.dtype is DType.I8:
        return elements.astype(np.float32)
    if tensor.dtype in WEIGHT_DTYPES:
        return widen(elements, tensor.dtype)
    return float_values(KIND_OF[tensor.dtype])[elements]


@dataclass(frozen=True)
class Scales:
    """The scales of a weight [..., n, k], stored as [..., ceil(n / `rows`), ceil(k / `columns`)].

    A scale of the whole tensor is one of blocks as large as itself. `divisor` is one number that divides them all.
    """

    tensor: StoredTensor
    n_rows: int
    n_columns: int
    rows: int
    columns: int
    divisor: StoredTensor | None = None

    @property
    def n_across(self) -> int:
        return -(-self.n_columns // self.columns)

    def of_rows(self, start: int, stop: int) -> Float32:
        """Shapes: [stop - start, n_across]."""
        n_down = -(-self.n_rows // self.rows)
        matrix, row = np.divmod(np.arange(start, stop), self.n_rows)
        lines = matrix * n_down + row // self.rows
        first = int(lines[0]) if len(lines) else 0
        last = int(lines[-1]) + 1 if len(lines) else 0
        found = numbers(self.tensor, first * self.n_across, last * self.n_across).reshape(-1, self.n_across)
        if self.divisor is not None:
            found = found / numbers(self.divisor, 0, 1)
        return found[lines - first]


def spread(values: NDArray[np.float32], columns: int, n_columns: int) -> Float32:
    """One number a group [n, groups] as one a column [n, n_columns]."""
    return np.repeat(values, columns, axis=1)[:, :n_columns]


def times(codes: Float32, scales: Float32, columns: int) -> None:
    """Multiplies codes [n, k], in place, by the scales of groups of `columns`; the last may be smaller."""
    n, k = codes.shape
    if k == columns * scales.shape[1]:
        grouped = codes.reshape(n, -1, columns)
        np.multiply(grouped, scales[:, :, None], out=grouped)
    else:
        codes *= spread(scales, columns, k)


# The rows of codes of a tensor.
ReadCodes = Callable[[int, int], Bytes]


class FloatTensor(PackedTensor):
    """Small floats times scales. `kind` names what a code of `bits` bits stands for."""

    def __init__(
        self, name: str, dtype: DType, shape: Shape, main: StoredTensor, *, kind: str, bits: int, scales: Scales
    ) -> None:
        super().__init__(name, dtype, shape, main)
        self._values, self._bits, self._scales = float_values(kind), bits, scales

    def decode(self, start: int, stop: int, out: Float32) -> None:
        n_bytes = self.n_cols * self._bits // 8
        packed = self.main.elements(start * n_bytes, stop * n_bytes).reshape(stop - start, n_bytes)
        np.take(self._values, unpack(packed.view(np.uint8), self._bits, self.n_cols), out=out)
        times(out, self._scales.of_rows(start, stop), self._scales.columns)
