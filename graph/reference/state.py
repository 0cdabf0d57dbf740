"""What conversations remember between calls: tokens seen, windows of convolutions, keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..dtypes import Float32


@dataclass
class AttentionCache:
    """Rotated keys and values of one sequence in one layer: [n_kv_heads, capacity, head_dim]."""

    keys: Float32
    values: Float32
    length: int = 0

    def append(self, keys: Float32, values: Float32) -> tuple[Float32, Float32]:
        """Adds [n_kv_heads, n, head_dim]; returns all so far."""
        total = self.length + keys.shape[1]
        if total > self.keys.shape[1]:
            grow = ((0, 0), (0, max(total, 2 * self.length) - self.keys.shape[1]), (0, 0))
            self.keys, self.values = np.pad(self.keys, grow), np.pad(self.values, grow)
        self.keys[:, self.length : total], self.values[:, self.length : total] = keys, values
        self.length = total
        return self.keys[:, :total], self.values[:, :total]


@dataclass
class Conversation:
    """One conversation: `conv` and `attention` are by layer."""

    length: int = 0
    conv: dict[int, Float32] = field(default_factory=dict)
    attention: dict[int, AttentionCache] = field(default_factory=dict)


class State:
    """The caches of a batch of independent conversations."""

    def __init__(self, n_sequences: int) -> None:
        self.sequences = [Conversation() for _ in range(n_sequences)]


@dataclass(frozen=True)
class Batch:
    """Sequences whose new tokens are laid end to end: their caches, and how many tokens each of them adds."""

    state: State
    lengths: list[int]

    def pieces(self) -> list[tuple[Conversation, slice]]:
        """Each sequence with the rows of its tokens."""
        stops = np.cumsum(self.lengths).tolist()
        rows = [slice(stop - n, stop) for stop, n in zip(stops, self.lengths, strict=True)]
        return list(zip(self.state.sequences, rows, strict=True))
