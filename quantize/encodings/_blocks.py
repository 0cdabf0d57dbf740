"""What GGUF's block formats share: one record a block, encoded in slices that fit the processor's cache.

Bits are those of ggml's reference (`quantize_row_*_ref`): float32 arithmetic, rounding and ties as in C.
Source: llama.cpp `ggml/src/ggml-quants.c`, `ggml/src/ggml-common.h`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...convert.errors import InputError
from ...convert.model.dtypes import Float32
from ..encoding import Bytes, Encoding, Part

Levels = NDArray[np.uint8]
Records = NDArray[Any]

# Elements encoded at a time: 256 KiB of float32, so that temporaries stay in the second-level cache.
_SLICE = 1 << 16


class BlockEncoding(Encoding):
    """Blocks of `block` elements, each stored as one `layout` record; a row is its blocks end to end."""

    layout: ClassVar[np.dtype[Any]]

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        n_bytes = n_cols // self.block * self.layout.itemsize
        return (Part("blocks", np.dtype(np.uint8), (n_bytes,)),)

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        """See `Encoding.encode`. Raises InputError if a scale is beyond float16."""
        blocks = np.ascontiguousarray(rows).reshape(-1, self.block)
        out = np.empty(len(blocks), self.layout)
        step = _SLICE // self.block
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for start in range(0, len(blocks), step):
                self._encode(blocks[start : start + step], out[start : start + step])
        return (out.view(np.uint8).reshape(len(rows), self.parts(rows.shape[1])[0].row_nbytes),)

    def decode(self, *parts: Bytes) -> Float32:
        (stored,) = parts
        n_cols = stored.shape[1] // self.layout.itemsize * self.block
        records = np.ascontiguousarray(stored).reshape(-1).view(self.layout)
        return self._decode(records).reshape(len(stored), n_cols)

    @abstractmethod
    def _encode(self, blocks: Float32, out: Records) -> None:
        """Fills records [n] from blocks [n, block]."""

    @abstractmethod
    def _decode(self, records: Records) -> Float32:
        """Values [n, block] of records [n]."""


def to_half(values: Float32) -> NDArray[np.float16]:
    """Scales as float16.

    Raises: InputError if one is beyond ±65504, which would store infinity.
    """
    half = values.astype("<f2")
    if not np.isfinite(half).all():
        raise InputError("a block's scale is beyond float16 (±65504): choose a wider encoding")
    return half


def column(values: NDArray[Any]) -> Float32:
    """[n] as float32 [n, 1], to multiply blocks with."""
    return values.astype(np.float32)[:, None]
