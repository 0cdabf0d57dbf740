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

from ...graph.dtypes import Float32
from ..encoding import Bytes, Encoding, Part
from .et_int import FLOAT32, GroupInt4

_ROWS = 8
_WORDS = 8 * _ROWS  # bytes of a group's scales and sums


class TiledInt4(Encoding):
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
        codes, scales = self._plain.quantize(rows, importance)
        shape = len(rows) // _ROWS, _ROWS, -1, self.block
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
        return (tiles.reshape(len(rows), -1),)

    def decode(self, *parts: Bytes) -> Float32:
        (stored,) = parts
        tiles = stored.reshape(len(stored) // _ROWS, -1, 4 * self.block + _WORDS)
        nibbles = tiles[..., : 4 * self.block].reshape(*tiles.shape[:2], -1, 1, 16)
        runs = np.concatenate([nibbles & 15, nibbles >> 4], axis=-2).astype(np.int8) - np.int8(8)
        codes = runs.reshape(*tiles.shape[:2], self.block // 16, 2, _ROWS, 8).transpose(0, 4, 1, 2, 3, 5)
        words = np.ascontiguousarray(tiles[..., 4 * self.block : 4 * self.block + 4 * _ROWS])
        scales = words.view("<f4").swapaxes(1, 2)[..., None]
        shape = *codes.shape[:3], self.block
        decoded: Float32 = codes.reshape(shape).astype(np.float32) * scales
        return decoded.reshape(len(stored), -1)


ENCODINGS: tuple[Encoding, ...] = tuple(TiledInt4(f"et_tiles4_g{block}", block=block) for block in (32, 64, 128))
