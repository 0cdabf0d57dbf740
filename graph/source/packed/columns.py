"""Weights that are stored the other way round: a row of the weight is a column of the file.

Of a range of rows the whole stored tensor is read, a run of its rows at a time, and the columns are cut out: memory
stays within the range, and a tensor of words is an eighth of the weight, or less. To read the columns alone would be a
call to the system for each row of the file.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...codes import Bytes, as_bytes, unpack
from ...dtypes import widen
from ...grid import GridRows
from ...tensor import Shape
from ..safetensors import StoredTensor
from .integers import IntegerTensor

_RUN_BYTES = 1 << 20
# Elements of the weight decoded at a time: the more, the fewer times the stored tensor is read.
_AT_ONCE = 1 << 22
# The code of each channel in a word, in the order that AWQ's kernels want.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def turned(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Columns [start, stop) as rows. Shapes: of a tensor [r, c] an array [stop - start, r]."""
    n_rows, n_columns = tensor.shape
    found = np.empty((stop - start, n_rows), tensor.elements(0, 0).dtype)
    run = max(1, _RUN_BYTES // (n_columns * tensor.dtype.itemsize))
    for low in range(0, n_rows, run):
        high = min(low + run, n_rows)
        piece = tensor.elements(low * n_columns, high * n_columns).reshape(high - low, n_columns)
        found[:, low:high] = piece[:, start:stop].T
    return found


class ColumnTensor(IntegerTensor):
    """Codes, scales [groups, n] and zero points of a weight [n, k] that lies there transposed.

    Zero points have `added` to them, and wrap.
    """

    at_once = _AT_ONCE

    def __init__(
        self,
        name: str,
        shape: Shape,
        main: StoredTensor,
        *,
        bits: int,
        columns: int,
        scales: StoredTensor,
        zeros: StoredTensor | None,
        added: int = 0,
        order: StoredTensor | None = None,
    ) -> None:
        zero = 1 << (bits - 1) if zeros is None else None
        super().__init__(name, scales.dtype, shape, main, bits=bits, columns=columns, zero=zero, order=order)
        self._scales, self._zeros, self._added = scales, zeros, added

    def read_codes(self, start: int, stop: int) -> GridRows:
        scales = turned(self._scales, start, stop)
        scales = widen(scales.reshape(-1), self._scales.dtype).reshape(scales.shape)
        if self._zeros is None:
            zeros = np.full(scales.shape, self.zero, np.float32)
        else:
            stored = self.channels(self._zeros, start, stop)
            zeros = ((stored + np.uint8(self._added)) & np.uint8((1 << self.bits) - 1)).astype(np.float32)
        return GridRows(self.codes(start, stop), scales, zeros)

    @abstractmethod
    def codes(self, start: int, stop: int) -> Bytes:
        """Codes of rows [start, stop) of the weight. Shapes: [stop - start, k]."""

    @abstractmethod
    def channels(self, tensor: StoredTensor, start: int, stop: int) -> Bytes:
        """Codes [stop - start, r] of a tensor of r rows that are packed along them."""


class DownTensor(ColumnTensor):
    """GPTQ: codes are packed down the columns, zero points along the rows, both dense."""

    def codes(self, start: int, stop: int) -> Bytes:
        return unpack(as_bytes(turned(self.main, start, stop)), self.bits, self.n_cols)

    def channels(self, tensor: StoredTensor, start: int, stop: int) -> Bytes:
        block = 32 // math.gcd(32, self.bits)  # channels that fill whole words
        first = start // block * block
        low, high = first * self.bits // 32, -(-stop * self.bits // 32)
        words = turned(tensor, low, high)
        return unpack(as_bytes(words.T), self.bits, stop - first)[:, start - first :].T


class AcrossTensor(ColumnTensor):
    """AWQ: codes and zero points of eight channels in a word, in an order of its own."""

    def codes(self, start: int, stop: int) -> Bytes:
        return self.channels(self.main, start, stop)

    def channels(self, tensor: StoredTensor, start: int, stop: int) -> Bytes:
        low, high = start // 8, -(-stop // 8)
        words = turned(tensor, low, high).view(np.uint32)
        found = np.empty((high - low, 8, words.shape[1]), np.uint8)
        for channel, place in enumerate(_AWQ_ORDER):
            found[:, channel] = (words >> np.uint32(4 * place)) & np.uint32(15)
        return found.reshape(-1, words.shape[1])[start - 8 * low :][: stop - start]
