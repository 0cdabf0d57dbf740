"""Symmetric integers as ExecuTorch holds them: XNNPACK's linear weights and the quantized embedding table.

| encoding      | values, row of K elements              | scales                    | read by                        |
|---------------|----------------------------------------|---------------------------|--------------------------------|
| et_int4_gG    | uint8 [K/2], even element in the low nibble  | bfloat16 [K/G]      | XNNPACK `qbint4`               |
| et_int8       | int8 [K]                               | float32 [1]               | XNNPACK `qcint8`               |
| et_embed4_g32 | uint8 [K/2], even element in the high nibble | float16 [K/32]      | `quantized_decomposed::embedding_4bit` |
| et_embed8     | int8 [K]                               | float32 [1]               | `quantized_decomposed::embedding_byte` |

G is 32, 64 or 128. A nibble holds code + 8; value = code * scale. XNNPACK demands scales that are positive and not subnormal.
Source: executorch `backends/xnnpack/operators/node_visitor.py`, `kernels/quantized/cpu/op_embedding4b.cpp`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32, to_bfloat16
from ...graph.errors import InputError
from ...graph.grid import Grid, GridRows
from ..committed import Committed, Tunable, integer_levels
from ..encoding import Bytes, Encoding, Part
from ..grids import OnGrid, repeated

# Largest magnitude of a group over its scale. 7 and 8 put the extreme on the last code of its side; the
# others trade a clipped extreme for a finer grid.
_RATIOS = (6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
_LEAST_SCALE = np.float32(2.0**-126)


@dataclass(frozen=True)
class _ScaleType:
    """How scales are stored. bfloat16 has no numpy type: its bits are kept as uint16."""

    dtype: np.dtype[Any]
    is_bfloat16: bool = False

    def store(self, scales: Float32) -> Bytes:
        if self.is_bfloat16:
            return to_bfloat16(scales)
        with np.errstate(over="ignore"):
            return scales.astype(self.dtype)

    def load(self, stored: Bytes) -> Float32:
        if self.is_bfloat16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)

    def rounded(self, scales: Float32) -> Float32:
        """What a runtime reads back; where that is nothing, the least that is something.

        Raises: InputError for a scale beyond the width.
        """
        found = self.load(self.store(scales))
        if not np.isfinite(found).all():
            raise InputError(f"a scale of {scales.max():g} is beyond {self.dtype.name}: choose a wider encoding")
        least = _LEAST_SCALE if self.is_bfloat16 else np.float32(np.finfo(self.dtype).smallest_subnormal)
        return np.maximum(found, least)


_BFLOAT16 = _ScaleType(np.dtype("<u2"), is_bfloat16=True)
_FLOAT16 = _ScaleType(np.dtype("<f2"))
FLOAT32 = _ScaleType(np.dtype("<f4"))


class Integers(Tunable):
    """Codes of `n_bits` and scales. Bytes reach from -127, so that they can be negated."""

    n_bits: int

    @property
    def activation_block(self) -> int:
        return 0

    @abstractmethod
    def integers(self, values: Bytes, scales: Bytes) -> tuple[NDArray[np.int8], Float32]:
        """Codes [n, n_cols] and scales [n, groups] of stored parts."""

    @abstractmethod
    def _pack(self, codes: NDArray[np.int8]) -> Bytes:
        """Codes [n, n_cols] as they are stored."""

    @property
    def levels(self) -> Float32:
        return integer_levels(self.n_bits, zero=1 << (self.n_bits - 1), lowest=self.n_bits // 8)

    def committed(self, *parts: Bytes) -> Committed:
        codes, scales = self.integers(*parts)
        return Committed(codes.view(np.uint8) + np.uint8(1 << (self.n_bits - 1)), scales)

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return self._pack((found.codes - np.uint8(1 << (self.n_bits - 1))).view(np.int8)), parts[1]

    def decode(self, *parts: Bytes) -> Float32:
        codes, scales = self.integers(*parts)
        groups = codes.reshape(*scales.shape, -1).astype(np.float32)
        groups *= scales[..., None]
        return groups.reshape(codes.shape)


class GroupInt4(Integers):
    """4-bit codes in groups of `block`; the scale that leaves the least squared error among those tried.

    Every candidate is rounded to its stored width before it is judged, so that the codes are the nearest
    on the grid a runtime will use.
    """

    class_name = "q4"
    weighs_columns = True
    n_bits = 4

    def __init__(self, name: str, scales: _ScaleType, *, even_high: bool, block: int = 32) -> None:
        self.name, self.block = name, block
        self._scales = scales
        self._shifts = (4, 0) if even_high else (0, 4)

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return (
            Part("values", np.dtype("u1"), (n_cols // 2,)),
            Part("scales", self._scales.dtype, (n_cols // self.block,)),
        )

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        codes, scales = self.quantize(rows, importance)
        return self._pack(codes), self._scales.store(scales)

    def quantize(self, rows: Float32, importance: Float32 | None = None) -> tuple[NDArray[np.int8], Float32]:
        """Codes [n, n_cols] and scales [n, n_cols / block], before either is packed."""
        n, n_cols = rows.shape
        groups = rows.reshape(n, n_cols // self.block, self.block)
        weights = None if importance is None else importance.reshape(n_cols // self.block, self.block)
        scales = self._search(groups, weights)
        return _codes(groups, scales).astype(np.int8).reshape(n, n_cols), scales[..., 0]

    def integers(self, values: Bytes, scales: Bytes) -> tuple[NDArray[np.int8], Float32]:
        pairs = np.stack([(values >> shift) & 15 for shift in self._shifts], axis=-1)
        return (pairs.astype(np.int8) - np.int8(8)).reshape(len(values), -1), self._scales.load(scales)

    @property
    def refits(self) -> DType | None:
        return DType.BF16 if self._scales.is_bfloat16 else None

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return super().recoded(parts, found)[0], self._scales.store(found.scales)

    def _search(self, groups: Float32, weights: Float32 | None) -> Float32:
        """The best scale of each group: [n, groups, 1]."""
        largest = np.abs(groups).max(axis=-1, keepdims=True)
        best = np.ones_like(largest)
        least = np.full_like(largest, np.inf)
        for ratio in _RATIOS:
            scales = np.where(largest > 0, self._scales.rounded(largest / np.float32(ratio)), np.float32(1))
            error = _codes(groups, scales)
            error *= scales
            error -= groups
            error *= error
            if weights is not None:
                error *= weights
            total = error.sum(axis=-1, keepdims=True)
            better = total < least
            best[better], least[better] = scales[better], total[better]
        return best

    def _pack(self, codes: NDArray[np.int8]) -> Bytes:
        nibbles = (codes + 8).astype(np.uint8)
        even, odd = self._shifts
        return np.asarray((nibbles[:, 0::2] << even) | (nibbles[:, 1::2] << odd), np.uint8)


class TableInt4(OnGrid, GroupInt4):
    """`GroupInt4` with float16 scales for a table that is looked up: there any scale will do, a negative one, too."""

    grid = Grid(bits=4, group=32, scales=DType.F16, zero=8)

    def __init__(self, name: str) -> None:
        super().__init__(name, _FLOAT16, even_high=True, block=self.grid.group)

    def to_grid(self, *parts: Bytes) -> GridRows:
        codes, scales = self.integers(*parts)
        return GridRows((codes + np.int8(8)).astype(np.uint8), scales, repeated(8, scales))

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        return self._pack(rows.codes.astype(np.int8) - np.int8(8)), self._scales.store(rows.scales)


class RowInt8(Integers):
    """8-bit codes with one float32 scale a row."""

    class_name = "q8"
    n_bits = 8

    def __init__(self, name: str) -> None:
        self.name = name

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return Part("values", np.dtype("i1"), (n_cols,)), Part("scales", FLOAT32.dtype, (1,))

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        largest = np.abs(rows).max(axis=1, keepdims=True)
        scales = np.where(largest > 0, np.maximum(largest / np.float32(127), _LEAST_SCALE), np.float32(1))
        codes = np.clip(np.rint(rows / scales), -127, 127)
        return codes.astype(np.int8), scales.astype(np.float32)

    def integers(self, values: Bytes, scales: Bytes) -> tuple[NDArray[np.int8], Float32]:
        return values, scales

    def _pack(self, codes: NDArray[np.int8]) -> Bytes:
        return codes


def _codes(groups: Float32, scales: Float32) -> Float32:
    codes = groups / scales
    np.rint(codes, out=codes)
    return np.clip(codes, -8, 7, out=codes)


ENCODINGS: tuple[Encoding, ...] = (
    *(GroupInt4(f"et_int4_g{block}", _BFLOAT16, even_high=False, block=block) for block in (32, 64, 128)),
    RowInt8("et_int8"),
    TableInt4("et_embed4_g32"),
    RowInt8("et_embed8"),
)
