"""Rows of queries and keys where llama.cpp turns neighbouring numbers of a head, and a checkpoint its halves.

| of a head of D rows | the graph | the file        |
|---------------------|-----------|-----------------|
| pair i              | i, i + D/2 | 2i, 2i + 1     |

Rows move whole, so that packed ones keep their codes.
Source: llama.cpp `conversion/llama.py`, `LlamaModel.permute`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...graph.blocks import Attention
from ...graph.config import ModelConfig
from ...graph.dtypes import Float32
from ...graph.roles import Role
from ...graph.tensor import Arrays, Read, RowsOf, TensorView
from ...quantize.gguf_file.tensor_names import gguf_names

QUERIES, KEYS = frozenset({Role.ATTN_Q, Role.ATTN_Q_BIAS}), frozenset({Role.ATTN_K, Role.ATTN_K_BIAS})


def n_heads_moved(config: ModelConfig, role: Role, layer: int | None) -> int | None:
    """How many heads a weight has whose rows stand otherwise in a file; None of any other."""
    if layer is None or role not in QUERIES | KEYS or not gguf_names(config.family).pairs_neighbours:
        return None
    attention = config.of_kind(Attention)[layer]
    return attention.n_heads if role in QUERIES else attention.n_kv_heads


def as_pairs(view: TensorView, n_heads: int) -> TensorView:
    """A weight or bias of the graph as the file has it."""
    return _moved(view, n_heads, to_pairs=True)


def as_halves(view: TensorView, n_heads: int) -> TensorView:
    """The inverse of `as_pairs`."""
    return _moved(view, n_heads, to_pairs=False)


def paired_rows(rows: Float32, n_heads: int) -> Float32:
    """Rows in memory as the file has them."""
    return rows[_origin(np.arange(len(rows)), len(rows) // n_heads, to_pairs=True)]


def _moved(view: TensorView, n_heads: int, *, to_pairs: bool) -> TensorView:
    if isinstance(view, _Moved) and (view.n_heads, view.to_pairs) == (n_heads, not to_pairs):
        return view.base
    kind = _MovedRows if len(view.shape) > 1 else _MovedNumbers
    return kind(view, n_heads, to_pairs=to_pairs)


def _origin(index: NDArray[np.int64], size: int, *, to_pairs: bool) -> NDArray[np.int64]:
    """Which row of a head of `size`, of many, comes to stand at each index."""
    head, at = index // size, index % size
    half = size // 2
    found: NDArray[np.int64] = head * size + (at % 2 * half + at // 2 if to_pairs else at % half * 2 + at // half)
    return found


class _Moved(TensorView):
    def __init__(self, base: TensorView, n_heads: int, *, to_pairs: bool) -> None:
        super().__init__(base.name, base.dtype, base.shape)
        self.base, self.n_heads, self.to_pairs = base, n_heads, to_pairs

    @property
    def size(self) -> int:
        return self.shape[0] // self.n_heads

    def origin(self, start: int, stop: int) -> NDArray[np.int64]:
        return _origin(np.arange(start, stop), self.size, to_pairs=self.to_pairs)

    def sources(self) -> Sequence[TensorView]:
        return (self.base,)


class _MovedRows(_Moved, RowsOf):
    """Whole heads are read, and their rows put in order."""

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        first, last = start // self.size * self.size, -(-stop // self.size) * self.size
        order = self.origin(start, stop) - first
        return tuple(array[order] for array in read(self.base, first, last))

    def place(self, row: int) -> tuple[str, int]:
        return self.base.place(int(self.origin(row, row + 1)[0]))


class _MovedNumbers(_Moved):
    """A bias: one row."""

    def _rows(self, start: int, stop: int) -> Float32:
        return self.base.rows(start, stop)[:, self.origin(0, self.n_cols)]
