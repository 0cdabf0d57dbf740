"""What MLX's formats share: groups that lie side by side, codes packed into words, and the checkpoint's float type.

Codes of b bits are one little-endian bit stream a row, element i in bits [i·b, (i+1)·b), seen as uint32 words.
Source: MLX `mlx/backend/cpu/quantized.cpp`, `quantize`, `extract_bits`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...graph import codes as coded
from ...graph.codes import merges
from ...graph.dtypes import Float32
from ..encoding import Bytes, Encoding, Part
from ..importance import all_counted
from .floats import FloatBF16, FloatF16, FloatF32

Codes = NDArray[np.uint8]

# The type a checkpoint's weights are in, by the ending of an encoding's name.
FLOATS = {"bf16": FloatBF16(), "f16": FloatF16(), "f32": FloatF32()}

# Elements encoded at a time: 256 KiB of float32, so that temporaries stay in the second-level cache.
_SLICE = 1 << 16


class GroupEncoding(Encoding):
    """Groups of `block` elements with parameters of their own, codes of `bits` bits in uint32 words.

    `mode` is MLX's name of the kind of code.

    Refined, it searches each group's parameters and keeps what lowers its squared error.
    """

    can_refine = True

    def __init__(self, stem: str, *, mode: str, bits: int, group: int, dtype: str) -> None:
        self.name = f"{stem}_{dtype}"
        self.mode = mode
        self.block = group
        self.bits = bits
        self.floats = FLOATS[dtype]

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        weight = Part("weight", np.dtype("<u4"), (n_cols * self.bits // 32,))
        return (weight, *(Part(name, dtype, (n_cols // self.block,)) for name, dtype in self._parameters()))

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`; `importance` weighs the error that refining lowers, and nothing else."""
        n, n_cols = rows.shape
        codes = np.empty((n * n_cols // self.block, self.block), np.uint8)
        parameters = [np.empty(len(codes), dtype) for _, dtype in self._parameters()]
        for where, groups, weights in self._slices(rows, importance):
            found, *stored = self._refine(groups, weights) if self.is_refined else self._fit(groups)
            codes[where] = found.T
            for whole, piece in zip(parameters, stored, strict=True):
                whole[where] = piece
        weight = pack(codes.reshape(n, n_cols), self.bits)
        return (weight, *(values.reshape(n, n_cols // self.block) for values in parameters))

    def decode(self, *parts: Bytes) -> Float32:
        weight, *parameters = parts
        codes = unpack(weight, self.bits)
        groups = codes.reshape(len(codes), -1, self.block)
        return self._values(groups, *(values[..., None] for values in parameters)).reshape(codes.shape)

    def _slices(self, rows: Float32, importance: Float32 | None) -> Iterator[tuple[slice, Float32, Float32 | None]]:
        """Groups [block, n], side by side so that reductions over a group run along memory, with their weights."""
        groups = rows.reshape(-1, self.block)
        each = None if importance is None else all_counted(importance.reshape(-1, self.block))
        step = max(1, _SLICE // self.block)
        for start in range(0, len(groups), step):
            where = slice(start, min(start + step, len(groups)))
            weights = None
            if each is not None:
                weights = np.ascontiguousarray(each[np.arange(where.start, where.stop) % len(each)].T)
            yield where, np.ascontiguousarray(groups[where].T), weights

    @abstractmethod
    def _parameters(self) -> tuple[tuple[str, np.dtype[np.generic]], ...]:
        """Name and stored type of each parameter of a group."""

    @abstractmethod
    def _fit(self, groups: Float32) -> tuple[Bytes, ...]:
        """Codes [block, n] and stored parameters [n], as MLX computes them."""

    @abstractmethod
    def _refine(self, groups: Float32, weights: Float32 | None) -> tuple[Bytes, ...]:
        """As `_fit`, with a squared error that is never higher."""

    @abstractmethod
    def _values(self, codes: Codes, *parameters: Bytes) -> Float32:
        """What codes stand for; stored parameters broadcast against them."""

    def _error(self, groups: Float32, weights: Float32 | None, fitted: tuple[Bytes, ...]) -> Float32:
        """Squared error [n] of each group."""
        codes, *parameters = fitted
        error = self._values(codes, *parameters) - groups
        error *= error
        if weights is not None:
            error *= weights
        return sum_groups(error)

    def _best(
        self, groups: Float32, weights: Float32 | None, first: tuple[Bytes, ...], others: Iterator[tuple[Bytes, ...]]
    ) -> tuple[Bytes, ...]:
        """Of each group the fit with the lowest error; the first where none is lower."""
        best = tuple(values.copy() for values in first)
        least = self._error(groups, weights, best)
        for other in others:
            error = self._error(groups, weights, other)
            better = error < least
            least[better] = error[better]
            for kept, values in zip(best, other, strict=True):
                kept[..., better] = values[..., better]
        return best


def sum_groups(values: Float32) -> Float32:
    """The sum [n] of each group of values [block, n], one element after the other.

    numpy's own adds in another order where there is one group alone, which would make bytes depend on how rows are cut.
    """
    total = values[0].copy()
    for row in values[1:]:
        total += row
    return total


def pack(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """Codes [n, n_cols], below 2^bits, as words [n, n_cols · bits / 32]; n_cols is a multiple of 32."""
    if bits == 8:
        return codes.view("<u4")
    if bits == 4:  # most quants: worth a way of its own, a quarter of the encoder's time
        pairs = codes.view("<u2")
        return (pairs | (pairs >> 4)).astype(np.uint8).view("<u4")
    lanes = codes.reshape(-1, 8).view("<u8")  # eight codes, one a byte
    for lane, width, mask in merges(bits):
        lanes = (lanes & mask) | ((lanes & ~mask) >> np.uint64(lane - width))
    return np.ascontiguousarray(lanes.view(np.uint8)[:, :bits]).reshape(len(codes), -1).view("<u4")


def unpack(words: Bytes, bits: int) -> Codes:
    """Inverse of `pack`."""
    stream = np.ascontiguousarray(words).view(np.uint8)
    return coded.unpack(stream, bits, stream.shape[1] * 8 // bits)
