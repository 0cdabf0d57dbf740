"""MLX's affine formats: unsigned codes with a scale and a bias a group.

| part   | row of K elements, b bits, groups of g | content                                        |
|--------|----------------------------------------|------------------------------------------------|
| weight | uint32 [K·b/32]                        | codes, a little-endian bit stream              |
| scales | the checkpoint's float type [K/g]      | may be negative                                |
| biases | the same [K/g]                         | the value of code 0                            |

value = code · scale + bias.
Source: MLX `mlx/backend/cpu/quantized.cpp`, `quantize` (the CPU's rounding: its GPU kernels differ in ties).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...graph.dtypes import DType, Float32
from ...graph.errors import needs_extra
from ...graph.grid import Grid, GridRows
from ..encoding import Bytes
from ..grids import OnGrid
from ._blocks import to_values
from .mlx_pack import FLOATS, Codes, GroupEncoding, pack, sum_groups, unpack

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)

_LEAST_SCALE = np.float32(1e-7)
# Shares of the range that refining starts its search from: clipping a little pays at few bits.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
_ROUNDS = 3


class Affine(GroupEncoding, OnGrid):
    """One edge of each group's range is met exactly, and zero is a code."""

    def __init__(self, bits: int, group: int, dtype: str) -> None:
        stem = f"affine{bits}_g{group}"
        super().__init__(stem, mode="affine", bits=bits, group=group, dtype=dtype)
        self.class_name = f"q{bits}"
        self._top = np.float32(2**bits - 1)

    def _parameters(self) -> tuple[tuple[str, np.dtype[np.generic]], ...]:
        return (("scales", self.floats.numpy_dtype), ("biases", self.floats.numpy_dtype))

    @property
    def grid(self) -> Grid:
        return Grid(bits=self.bits, group=self.block, scales=DType(self.floats.name), has_offsets=True)

    def to_grid(self, *parts: Bytes) -> GridRows:
        weight, scales, biases = parts
        return GridRows(unpack(weight, self.bits), self.floats.decode(scales), self.floats.decode(biases))

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        return (pack(np.ascontiguousarray(rows.codes), self.bits), *self._store(rows.scales, rows.shifts))

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `GroupEncoding.encode`. Raises: BackendError if the compiler is not installed."""
        if self.is_refined:
            return super().encode(rows, importance)
        codes, *edges = self._nearest(rows.reshape(-1, self.block))
        n, n_cols = rows.shape
        return (pack(codes.reshape(n, n_cols), self.bits), *(each.reshape(n, -1) for each in self._store(*edges)))

    def _fit(self, groups: Float32) -> tuple[Bytes, ...]:
        # MLX rounds codes with the scale it has not rounded yet
        codes, *edges = self._nearest(groups.T)
        return (codes.T, *self._store(*edges))

    def _nearest(self, groups: Float32) -> tuple[Codes, Float32, Float32]:
        """Codes [n, block] of groups [n, block], and their scales and biases [n] as they are before they are stored."""
        with needs_extra("mlx", f"encoding {self.name}"):
            from ._kernels_mlx import encode_affine

        groups = np.require(groups, np.float32, ["C", "A", "W"])  # for other arrays numba compiles anew
        codes, scales, biases = np.empty(groups.shape, np.uint8), *np.empty((2, len(groups)), np.float32)
        encode_affine(groups, self._top, scales, biases, codes)
        return codes, scales, biases

    def _codes(self, groups: Float32, scale: Float32, bias: Float32) -> Codes:
        steps = groups - bias
        steps /= scale
        np.rint(steps, out=steps)
        np.clip(steps, 0, self._top, out=steps)
        return steps.astype(np.uint8)

    def _store(self, *values: Float32) -> tuple[Bytes, ...]:
        return tuple(self.floats.encode(each)[0] for each in values)

    def _refine(self, groups: Float32, weights: Float32 | None) -> tuple[Bytes, ...]:
        return self._best(groups, weights, self._fit(groups), self._candidates(groups, weights))

    def _candidates(self, groups: Float32, weights: Float32 | None) -> Iterator[tuple[Bytes, ...]]:
        """Codes nearest on stored grids: MLX's own, narrower ones, and least-squares fits to their codes."""
        _, whole_scale, whole_bias = self._nearest(groups.T)
        for share in _SHARES:
            scale: Float32 = whole_scale * np.float32(share)
            bias: Float32 = whole_bias + (whole_scale - scale) * (self._top * np.float32(0.5))
            for _ in range(_ROUNDS):
                stored = self._store(scale, bias)
                scale, bias = (self.floats.decode(each) for each in stored)
                codes = self._codes(groups, np.where(scale == 0, _LEAST_SCALE, scale), bias)
                yield (codes, *stored)
                scale, bias = _least_squares(codes.astype(np.float32), groups, weights, scale, bias)

    def _values(self, codes: Codes, *parameters: Bytes) -> Float32:
        scale, bias = (self.floats.decode(each) for each in parameters)
        return to_values(codes, scale, bias)


def _least_squares(
    codes: Float32, groups: Float32, weights: Float32 | None, scale: Float32, bias: Float32
) -> tuple[Float32, Float32]:
    """Scale and bias [n] that bring given codes closest; those given where all codes of a group are equal."""
    weights = np.ones_like(groups) if weights is None else weights
    total: Float32 = np.maximum(sum_groups(weights), np.finfo(np.float32).tiny)
    mean_code: Float32 = sum_groups(weights * codes) / total
    mean_value: Float32 = sum_groups(weights * groups) / total
    away: Float32 = weights * (codes - mean_code)
    spread = sum_groups(away * codes)
    solvable = spread > 0
    slope = sum_groups(away * groups) / np.where(solvable, spread, np.float32(1))
    fitted: Float32 = np.where(solvable, slope, scale)
    return fitted, np.where(solvable, mean_value - fitted * mean_code, bias)


ENCODINGS = tuple(Affine(bits, group, dtype) for bits in BITS for group in GROUPS for dtype in FLOATS)
