"""Integers on a grid: (code - zero point) * scale, with a scale and a zero point for each group of columns of a row."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np

from ...codes import Bytes, as_bytes, unpack
from ...dtypes import DType, Float32
from ...grid import Grid, GridRows
from ...tensor import Shape
from ..safetensors import StoredTensor
from .taking import Taking
from .views import PackedTensor, Scales, spread, times


class IntegerTensor(PackedTensor):
    """A weight of unsigned codes of `bits` bits; `columns` share a scale of the type `dtype`, which is the weight's, too:
    that is what the libraries of these formats make of it.

    The zero point is `zero` everywhere, or of each group if that is None. `order` gives each column's group where
    groups are not columns side by side.
    """

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: Shape,
        main: StoredTensor,
        *,
        bits: int,
        columns: int,
        zero: int | None,
        order: StoredTensor | None = None,
    ) -> None:
        super().__init__(name, dtype, shape, main)
        self.bits, self.columns, self.zero, self.order = bits, columns, zero, order

    @property
    def grid(self) -> Grid | None:
        """None where groups are not columns side by side, or the last is smaller."""
        if self.order is not None or self.n_cols % self.columns:
            return None
        return Grid(bits=self.bits, group=self.columns, scales=self.dtype, zero=self.zero)

    def grid_rows(self, start: int, stop: int) -> GridRows:
        """Rows on their grid. Raises: ValueError if there is none; InputError if a scale is not finite."""
        if self.grid is None:
            raise ValueError(f"'{self.name}' has no grid")
        found = self.read_codes(start, stop)
        if not np.isfinite(found.scales).all():
            self.rows(start, stop)  # which says where
        return found

    @abstractmethod
    def read_codes(self, start: int, stop: int) -> GridRows:
        """Codes [n, n_cols], and scales and zero points of each group [n, groups]."""

    def decode(self, start: int, stop: int, out: Float32) -> None:
        codes, scales, zeros = self.read_codes(start, stop)
        if self.order is not None:
            groups = self.order.elements(0, self.n_cols)
            np.subtract(codes, zeros[:, groups], out=out)
            out *= scales[:, groups]
            return
        if self.zero is not None:
            np.subtract(codes, np.float32(self.zero), out=out)
        else:
            np.subtract(codes, spread(zeros, self.columns, self.n_cols), out=out)
        times(out, scales, self.columns)


class SignedTensor(IntegerTensor):
    """Codes as compressed-tensors keeps them: dense in words along a row, or bytes of signed integers.

    `zeros` are as many as the scales: bytes of signed integers, or codes packed down the columns.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        main: StoredTensor,
        *,
        bits: int,
        scales: Scales,
        zeros: StoredTensor | None = None,
        order: StoredTensor | None = None,
    ) -> None:
        bits = 8 if main.dtype is DType.I8 else bits
        self._half = 1 << (bits - 1)  # what is added to a signed code, so that none is negative
        super().__init__(
            name, scales.tensor.dtype, shape, main, bits=bits, columns=scales.columns, order=order,
            zero=self._half if zeros is None else None,
        )  # fmt: skip
        self._scales, self._zeros = scales, zeros

    def read_codes(self, start: int, stop: int) -> GridRows:
        across = self.main.shape[-1]
        stored = self.main.elements(start * across, stop * across).reshape(stop - start, across)
        if self.main.dtype is DType.I8:
            codes = stored.view(np.uint8) ^ np.uint8(self._half)  # the same as adding it
        else:
            codes = unpack(as_bytes(stored), self.bits, self.n_cols)
        scales = self._scales.of_rows(start, stop)
        return GridRows(codes, scales, self._zero_points(start, stop, scales.shape))

    def _zero_points(self, start: int, stop: int, shape: Shape) -> Float32:
        if self._zeros is None:
            return np.full(shape, self._half, np.float32)
        if self._zeros.dtype is DType.I8:
            return replace(self._scales, tensor=self._zeros).of_rows(start, stop) + np.float32(self._half)
        return _down(self._zeros, self.bits, start, stop).astype(np.float32)


def _down(zeros: StoredTensor, bits: int, start: int, stop: int) -> Bytes:
    """Codes [stop - start, groups] that are packed down the columns: 32 of them fill as many words as one has bits."""
    across, first = zeros.shape[-1], start // 32 * 32
    low, high = first // 32 * bits, -(-stop * bits // 32)
    words = zeros.elements(low * across, high * across).reshape(high - low, across)
    return unpack(as_bytes(words.T), bits, stop - first).T[start - first :]


def columns_in_order(order: StoredTensor, columns: int, n_groups: int, taking: Taking) -> StoredTensor | None:
    """The group of each column, if groups are not columns side by side; reads it, and a group that is none is a fault.

    Some files give -1 where nothing is reordered.
    """
    groups = order.elements(0, order.shape[0])
    if (groups == -1).all() or np.array_equal(groups, np.arange(len(groups)) // columns):
        return None
    if groups.size and not 0 <= groups.min() <= groups.max() < n_groups:
        column = int(np.argmax((groups < 0) | (groups >= n_groups)))
        taking.fault(
            f"tensor '{order.name}' gives column {column} the group {groups[column]}: expected 0 to {n_groups - 1}"
        )
    return order
