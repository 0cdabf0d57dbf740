"""What the formats of compressed-tensors share: the float type of the checkpoint.

Scales are found and stored in that type, and values divided in it, as llm-compressor does by rounding to the nearest.
Source: compressed-tensors `quantization/utils/helpers.py`, `calculate_qparams`; `quantization/lifecycle/forward_helpers.py`,
`_quantize`; llm-compressor `observers/min_max.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ..encoding import Bytes, Encoding
from .mlx_pack import FLOATS

Codes = NDArray[np.uint8]

WEIGHT, PACKED, SCALE, ZERO_POINT = "weight", "weight_packed", "weight_scale", "weight_zero_point"
# What stands for a scale of zero: the distance of the type's neighbours at one. Source: torch.finfo.
_EPSILON = {"bf16": 2.0**-7, "f16": 2.0**-10, "f32": 2.0**-23}
# Elements encoded at a time: 256 KiB of float32, so that temporaries stay in the second-level cache.
_SLICE = 1 << 16


class CtEncoding(Encoding):
    """A scheme's weights. `stem` is the name without the float type; `dtypes` are those of its parts in a file's header."""

    may_be_short: ClassVar[bool] = True
    dtypes: Mapping[str, DType]

    def __init__(self, stem: str, dtype: str) -> None:
        self.stem, self.name = stem, f"{stem}_{dtype}"
        self.floats = FLOATS[dtype]
        self._epsilon = np.float32(_EPSILON[dtype])

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """Of scales, as they are stored."""
        return self.floats.numpy_dtype

    def _round(self, values: Float32) -> Float32:
        """To the checkpoint's type, in place where that is bfloat16."""
        if self.floats.name == DType.F32.value:
            return values
        if self.floats.name == DType.BF16.value:
            bits = values.view(np.uint32)
            odd = bits >> np.uint32(16)
            odd &= np.uint32(1)
            odd += np.uint32(0x7FFF)
            bits += odd
            bits &= np.uint32(0xFFFF_0000)
            return values
        return self.floats.decode(*self.floats.encode(values))

    def _scales(self, largest: Float32, steps: float) -> Float32:
        """The scales of groups with these largest magnitudes, of which `steps` reach as far."""
        return self._not_zero(self._round(largest / np.float32(steps)))

    def _not_zero(self, scales: Float32) -> Float32:
        scales[scales == 0] = self._epsilon
        return scales

    def _store(self, scales: Float32) -> Bytes:
        return self.floats.encode(scales)[0]


class Grouped(CtEncoding):
    """A scale for each `block` elements of a row, or for each row."""

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`; importance changes nothing."""
        n, n_cols = rows.shape
        groups = np.ascontiguousarray(rows).reshape(-1, self._width(n_cols))
        codes = np.empty(groups.shape, np.uint8)
        parameters = [np.empty(len(groups), np.float32) for _ in range(self._n_parameters)]
        for where in _slices(groups):
            codes[where], *found = self._fit(groups[where])
            for whole, values in zip(parameters, found, strict=True):
                whole[where] = values
        return self._stored(codes.reshape(n, n_cols), *(values.reshape(n, -1) for values in parameters))

    _n_parameters: ClassVar[int] = 1

    def _width(self, n_cols: int) -> int:
        return n_cols if self.block == 1 else self.block

    @abstractmethod
    def _fit(self, groups: Float32) -> tuple[Codes, *tuple[Float32, ...]]:
        """Codes [n, width] of groups, and the parameters [n] of each."""

    @abstractmethod
    def _stored(self, codes: Codes, *parameters: Float32) -> tuple[Bytes, ...]:
        """The parts of codes [n, n_cols] and parameters [n, n_groups]."""


def _slices(groups: Float32) -> Iterator[slice]:
    step = max(1, _SLICE // groups.shape[1])
    for start in range(0, len(groups), step):
        yield slice(start, start + step)


def largest(groups: Float32) -> Float32:
    """The largest magnitude [n] of each group."""
    found: Float32 = np.maximum(groups.max(axis=-1), -groups.min(axis=-1))
    return found


def spread(values: Float32, width: int) -> Float32:
    """Each of [n, n_groups] for every element of its group of `width`."""
    return np.repeat(values, width, axis=1)
