"""The integers of compressed-tensors: 4 or 8 bits in groups, packed into words, or bytes with a scale a row.

| part              | row of K elements, b bits, groups of g  | rows of 8 bits each | content                               |
|-------------------|-----------------------------------------|---------------------|---------------------------------------|
| weight_packed     | int32 [K·b/32]                          |                     | codes + 2^(b-1), first element lowest |
| weight            |                                         | int8 [K]            | codes                                 |
| weight_scale      | the checkpoint's float type [K/g]       | the same [1]        |                                       |
| weight_zero_point | int32 [K/g], of 32/b rows, first lowest |                     | zero points + 2^(b-1), if asymmetric  |

value = (code - zero point) · scale. The steps of a symmetric range reach from -2^(b-1) to 2^(b-1), half a step beyond
the largest magnitude.
Source: compressed-tensors `compressors/pack_quantized`, `compressors/naive_quantized`.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from ...graph.dtypes import DType, Float32
from ...graph.errors import needs_extra
from ...graph.grid import Grid, GridRows
from ..committed import Committed, Tunable, integer_levels
from ..encoding import Bytes, Encoding, Part
from ..grids import OnGrid, repeated
from ._kinds import FLOAT_KINDS
from .ct_base import PACKED, SCALE, WEIGHT, ZERO_POINT, Codes, CtEncoding, Grouped, spread
from .mlx_pack import FLOATS, pack, unpack

BITS = (4, 8)
GROUPS = (32, 64, 128)


class Symmetric(CtEncoding):
    """Codes of `bits` bits around zero, encoded by a kernel."""

    bits: int

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`; importance changes nothing. Raises: BackendError if the compiler is not installed."""
        with needs_extra("compressed-tensors", f"encoding {self.name}"):
            from ._kernels_ct import encode_symmetric

        n, n_cols = rows.shape
        # numba compiles anew for arrays that are read-only or laid out otherwise
        groups = np.require(rows, np.float32, ["C", "A", "W"]).reshape(-1, n_cols if self.block == 1 else self.block)
        scales, codes = np.empty(len(groups), np.float32), np.empty((n, n_cols * self.bits // 8), np.uint8)
        kind = FLOAT_KINDS[DType(self.floats.name)]
        encode_symmetric(groups, kind, self._epsilon, self.bits, scales, codes.reshape(len(groups), -1))
        return self._packed(codes), self._store(scales.reshape(n, -1))

    @abstractmethod
    def _packed(self, codes: Codes) -> Bytes:
        """Bytes [n, bytes of a row] of codes that count from the lowest, as they are stored."""


class GroupInt(Symmetric, OnGrid):
    """Symmetric codes in groups."""

    is_symmetric = True
    _mark = ""

    def __init__(self, bits: int, group: int, dtype: str) -> None:
        super().__init__(f"ct_int{bits}_g{group}{self._mark}", dtype)
        self.bits, self.block, self.class_name = bits, group, f"q{bits}"
        self._half = 1 << (bits - 1)
        self.dtypes = {PACKED: DType.I32, SCALE: DType(self.floats.name), ZERO_POINT: DType.I32}

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        words = Part(PACKED, np.dtype("<i4"), (n_cols * self.bits // 32,))
        return words, Part(SCALE, self.float_dtype, (n_cols // self.block,))

    def decode(self, *parts: Bytes) -> Float32:
        packed, scales = parts
        return self._values(packed) * spread(self.floats.decode(scales), self.block)

    def _values(self, packed: Bytes) -> Float32:
        return self._unpacked(packed).astype(np.float32) - np.float32(self._half)

    def _unpacked(self, packed: Bytes) -> Codes:
        return unpack(np.ascontiguousarray(packed).view("<u4"), self.bits)

    @property
    def grid(self) -> Grid:
        zero = self._half if self.is_symmetric else None
        return Grid(bits=self.bits, group=self.block, scales=DType(self.floats.name), zero=zero)

    def to_grid(self, *parts: Bytes) -> GridRows:
        packed, scales = parts
        found = self.floats.decode(scales)
        return GridRows(self._unpacked(packed), found, repeated(self._half, found))

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        return self._packed(pack(rows.codes, self.bits).view(np.uint8)), self._store(rows.scales)

    def _packed(self, codes: Codes) -> Bytes:
        return codes.view("<i4")


class AsymmetricInt(Grouped, GroupInt):
    """Codes whose range is that of the group, zero always in it, and exactly a code."""

    is_symmetric = False
    _mark = "_asym"
    _n_parameters = 2

    def __init__(self, bits: int, group: int, dtype: str) -> None:
        super().__init__(bits, group, dtype)
        self.tile_rows = 32 // bits

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        zeros = Part(ZERO_POINT, np.dtype("<i4"), (n_cols // self.block,), n_together=self.tile_rows)
        return *super().parts(n_cols), zeros

    def decode(self, *parts: Bytes) -> Float32:
        codes, scales, zeros = self.to_grid(*parts)
        values = codes.astype(np.float32)
        values -= spread(zeros, self.block)
        return values * spread(scales, self.block)

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        return self._stored(rows.codes, rows.scales, rows.shifts - np.float32(self._half))

    def to_grid(self, *parts: Bytes) -> GridRows:
        packed, scales, words = parts
        zeros = unpack(np.ascontiguousarray(words.T).view("<u4"), self.bits).T[: len(packed)]
        return GridRows(self._unpacked(packed), self.floats.decode(scales), zeros.astype(np.float32))

    def _fit(self, groups: Float32) -> tuple[Codes, *tuple[Float32, ...]]:
        low, high = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
        scales = self._round(self._round(high - low) / np.float32(2**self.bits - 1))
        steps = self._round(np.divide(low, scales, out=np.zeros_like(low), where=scales != 0))
        zeros = np.clip(self._round(-self._half - steps), -self._half, self._half - 1)
        np.rint(zeros, out=zeros)
        zeros[scales == 0] = 0
        scales = self._not_zero(scales)
        values = self._round(self._round(groups / scales[:, None]) + zeros[:, None])
        np.clip(values, -self._half, self._half - 1, out=values)
        np.rint(values, out=values)
        values += self._half
        return values.astype(np.uint8), scales, zeros

    def _stored(self, codes: Codes, *parameters: Float32) -> tuple[Bytes, ...]:
        scales, zeros = parameters
        n, n_groups = zeros.shape
        moved = np.zeros((n_groups, -(-n // self.tile_rows) * self.tile_rows), np.uint8)  # of no row: a word's rest
        moved[:, :n] = zeros.T + np.float32(self._half)
        words = np.ascontiguousarray(_words(moved, self.bits).T)
        return pack(codes, self.bits).view("<i4"), self._store(scales), words.view("<i4")


def _words(codes: Codes, bits: int) -> Bytes:
    """As `pack`, of rows that need not be multiples of 32."""
    n_cols = codes.shape[1]
    padded = np.zeros((len(codes), -(-n_cols // 32) * 32), np.uint8)
    padded[:, :n_cols] = codes
    return pack(padded, bits)[:, : n_cols * bits // 32]


class ChannelInt8(Symmetric, Tunable):
    """Bytes with a scale a row, which kernels multiply by activations of 8 bits."""

    class_name = "q8"
    activation_block = 0
    bits = 8

    def __init__(self, dtype: str) -> None:
        super().__init__("ct_int8", dtype)
        self.dtypes = {WEIGHT: DType.I8, SCALE: DType(self.floats.name)}

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return Part(WEIGHT, np.dtype("i1"), (n_cols,)), Part(SCALE, self.float_dtype, (1,))

    def decode(self, *parts: Bytes) -> Float32:
        return self.values(self.committed(*parts))

    @property
    def levels(self) -> Float32:
        return integer_levels(8, zero=128)

    def committed(self, *parts: Bytes) -> Committed:
        codes, scales = parts
        return Committed(codes.view(np.uint8) ^ np.uint8(128), self.floats.decode(scales))

    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        return (found.codes ^ np.uint8(128)).view(np.int8), parts[1]

    def _packed(self, codes: Codes) -> Bytes:
        return (codes ^ np.uint8(128)).view(np.int8)


ENCODINGS: tuple[Encoding, ...] = tuple(
    encoding
    for dtype in FLOATS
    for encoding in (
        *(GroupInt(bits, group, dtype) for bits in BITS for group in GROUPS),
        *(AsymmetricInt(4, group, dtype) for group in GROUPS),
        ChannelInt8(dtype),
    )
)
