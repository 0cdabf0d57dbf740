"""4-bit experts as ExecuTorch's `llama::quantized_moe_ffn` takes them: torchao's packed weights, a tile of 8 rows.

A tile holds the groups of its rows one after the other, each of G columns as

| bytes | what                                                    |
|-------|---------------------------------------------------------|
| 4 G   | codes + 8, two a byte                                   |
| 32    | float32 scale of each row                               |
| 32    | int32 sum of each row's codes: zero points subtract it  |

Codes go by blocks of 16 columns, of each row the first 8 of them, then of each row the other 8. Of every 32 codes in
this order, byte i holds code i in its low nibble and code i + 16 in its high one.
Source: torchao `torch_free_kernels/weight_packing/weight_packing.h` with nr 8, kr 16, sr 2, and `bitpack.h`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ...graph.grid import Grid, GridRows
from ..encoding import Bytes, Encoding, Part
from ..grids import OnGrid, repeated
from .et_int import FLOAT32, GroupInt4

_ROWS = 8
_WORDS = 8 * _ROWS  # bytes of a group's scales and sums


class TiledInt4(OnGrid):
    """The codes and scales of `GroupInt4`, scales in float32. Rows come in multiples of 8."""

    class_name = "q4"
    weighs_columns = True
    tile_rows = _ROWS

    def __init__(self, name: str, *, block: int) -> None:
        self.name, self.block = name, block
        self._plain = GroupInt4(name, FLOAT32, even_high=False, block=block)

    @property
    def activation_block(self) -> int:
        return 0

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return (Part("tiles", np.dtype("u1"), (n_cols // self.block * (4 * self.block + _WORDS) // _ROWS,)),)

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        return self._tiled(*self._plain.quantize(rows, importance))

    @property
    def grid(self) -> Grid:
        return Grid(bits=4, group=self.block, scales=DType.F32, zero=8)

    def to_grid(self, *parts: Bytes) -> GridRows:
        codes, scales = self._untiled(*parts)
        n, scales = codes.shape[0] * _ROWS, np.ascontiguousarray(scales[..., 0]).reshape(-1, codes.shape[2])
        return GridRows((codes + np.int8(8)).astype(np.uint8).reshape(n, -1), scales, repeated(8, scales))

    def _from_grid(self, rows: GridRows) -> tuple[Bytes, ...]:
        return self._tiled(rows.codes.astype(np.int8) - np.int8(8), rows.scales)

    def _tiled(self, codes: NDArray[np.int8], scales: Float32) -> tuple[Bytes, ...]:
        shape = len(codes) // _ROWS, _ROWS, -1, self.block
        sums = codes.reshape(shape).sum(axis=-1, dtype="<i4")
        # tile, row, group, block, half, column -> tile, group, block, half, row, column
        ordered = (
            (codes + 8).astype(np.uint8).reshape(*shape[:2], -1, self.block // 16, 2, 8).transpose(0, 2, 3, 4, 1, 5)
        )
        runs = ordered.reshape(shape[0], scales.shape[1], -1, 2, 16)
        tiles = np.empty((shape[0], scales.shape[1], 4 * self.block + _WORDS), np.uint8)
        tiles[..., : 4 * self.block] = (runs[..., 0, :] | runs[..., 1, :] << 4).reshape(*tiles.shape[:2], -1)
        words = tiles[..., 4 * self.block :].reshape(*tiles.shape[:2], 2, 4 * _ROWS)
        words[..., 0, :] = np.ascontiguousarray(scales.reshape(shape[:3]).swapaxes(1, 2), "<f4").view(np.uint8)
        words[..., 1, :] = np.ascontiguousarray(sums.swapaxes(1, 2)).view(np.uint8)
        tiles[..., 4 * self.block :] = words.reshape(*tiles.shape[:2], _WORDS)
        return (tiles.reshape(len(codes), -1),)

    def decode(self, *parts: Bytes) -> Float32:
        codes, scales = self._untiled(*parts)
        decoded: Float32 = codes.astype(np.float32) * scales
        return decoded.reshape(len(parts[0]), -1)

    def _untiled(self, stored: Bytes) -> tuple[NDArray[np.int8], Float32]:
        """Codes [tiles, 8, groups, block] and scales [tiles, 8, groups, 1]."""
        tiles = stored.reshape(len(stored) // _ROWS, -1, 4 * self.block + _WORDS)
        nibbles = tiles[..., : 4 * self.block].reshape(*tiles.shape[:2], -1, 1, 16)
        runs = np.concatenate([nibbles & 15, nibbles >> 4], axis=-2).astype(np.int8) - np.int8(8)
        codes = runs.reshape(*tiles.shape[:2], self.block // 16, 2, _ROWS, 8).transpose(0, 4, 1, 2, 3, 5)
        words = np.ascontiguousarray(tiles[..., 4 * self.block : 4 * self.block + 4 * _ROWS])
        scales = words.view("<f4").swapaxes(1, 2)[..., None]
        return codes.reshape(*codes.shape[:3], self.block), scales


ENCODINGS: tuple[Encoding, ...] = tuple(TiledInt4(f"et_tiles4_g{block}", block=block) for block in (32, 64, 128))
