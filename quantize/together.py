"""Chunks of a text that run together, so that each reading of a layer's weights is for many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.reference.state import Batch, State

# Tokens that run together, if a chunk is not longer.
BATCH_TOKENS = 4096
Chunks = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Together:
    """Chunks that run together, and which tokens of all they are."""

    chunks: Chunks
    start: int
    stop: int

    def batch(self) -> Batch:
        """Each chunk from an empty state."""
        return Batch(State(len(self.chunks)), [len(chunk) for chunk in self.chunks])

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([np.asarray(chunk, np.int64) for chunk in self.chunks])


def together(chunks: Chunks) -> list[Together]:
    """Chunks in their order, as many together as have `BATCH_TOKENS`, or one."""
    parts: list[Together] = []
    taken: list[Sequence[int]] = []
    start = n_taken = 0
    for chunk in chunks:
        if taken and n_taken + len(chunk) > BATCH_TOKENS:
            parts.append(Together(taken, start, start + n_taken))
            taken, start, n_taken = [], start + n_taken, 0
        taken.append(chunk)
        n_taken += len(chunk)
    return [*parts, Together(taken, start, start + n_taken)]
