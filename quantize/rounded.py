"""Rounding that no writer need do, and none can do much less than: what weights are held to whose own format is not known."""

from __future__ import annotations

import re

import numpy as np

from ..graph.dtypes import Float32
from .encoding import Bytes, Encoding, Part

# Elements that share a scale in the coarser of the formats in use.
_BLOCK = 128
_CLASS = re.compile(r"q(\d+)")


class Rounded(Encoding):
    """Codes rounded to the nearest, with a scale from the range of each block: the least that any writer does.

    What it encodes are the values themselves, as it would decode them: nobody stores it.
    """

    def __init__(self, bits: int, block: int, *, has_zeros: bool, activation_block: int | None = None) -> None:
        self.name = f"int{bits}_block{block}_rounded"
        self.class_name, self.bits = f"q{bits}", bits
        self.block = block
        self._levels, self._has_zeros = 2**bits, has_zeros
        self._activation_block = block if activation_block is None else activation_block

    @property
    def activation_block(self) -> int:
        return self._activation_block

    def refusal(self, n_cols: int) -> str | None:
        return None  # a last block may be short

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return (Part("values", np.dtype("f4"), (n_cols,)),)

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        n, n_cols = rows.shape
        blocks = np.pad(rows, ((0, 0), (0, -n_cols % self.block))).reshape(n, -1, self.block)
        if self._has_zeros:
            low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
            scale = ((high - low) / np.float32(self._levels - 1))[..., None]
        else:
            low = np.zeros(1, np.float32)
            scale = (np.abs(blocks).max(-1) / np.float32(self._levels // 2))[..., None]
        scale = np.where(scale == 0, np.float32(1), scale)
        zero = np.rint(-low[..., None] / scale) if self._has_zeros else np.float32(self._levels // 2)
        codes = np.clip(np.rint(blocks / scale + zero), 0, self._levels - 1)
        values = ((codes - zero) * scale).reshape(n, -1)[:, :n_cols]
        return (np.ascontiguousarray(values, np.float32),)

    def decode(self, *parts: Bytes) -> Float32:
        return parts[0]


def largest_of(blocks: Float32) -> Float32:
    """The largest magnitude [n, 1] of each block [n, width]."""
    found: Float32 = np.maximum(blocks.max(axis=1, keepdims=True), -blocks.min(axis=1, keepdims=True))
    return found


def in_int8(blocks: Float32) -> Float32:
    """Activations [n, width] rounded to 8 bits with a scale for each block."""
    scale = largest_of(blocks) / np.float32(127)
    scale[scale == 0] = 1
    found: Float32 = blocks / scale
    np.rint(found, out=found)
    found *= scale
    return found


def rounding_of(class_name: str) -> Rounded | None:
    """What a quality class does to weights and activations at its coarsest; None for a class of floats.

    The class of three bits is also that of what has fewer: it is taken for two.
    """
    found = _CLASS.fullmatch(class_name)
    if found is None:
        return None
    bits = int(found[1])
    return Rounded(bits if bits > 3 else 2, _BLOCK, has_zeros=False, activation_block=0)
