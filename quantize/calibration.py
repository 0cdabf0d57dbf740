"""Importance by calibration: how large each column of a weight's input is over a text, from our own forward pass.

For every matrix of the layers, and every expert of a stack, the squared inputs of each column are summed over the
tokens that reach it. The head and the embedding are left out, as llama-imatrix leaves them out.
Source: llama.cpp `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.graph import Weight, WeightGraph
from ..graph.reference.forward import Forward
from ..graph.roles import Address

# Chunks run together: weights are read once for all of them.
_BATCH = 8


@dataclass(frozen=True)
class Use:
    """How a weight was used. Shapes: squared sums [slices, columns], tokens [slices]; slices are experts or one."""

    sums: Float32
    counts: Float32

    @property
    def never_hit(self) -> tuple[int, ...]:
        """The slices that no token reached."""
        return tuple(np.flatnonzero(self.counts == 0).tolist())


def calibrate(
    graph: WeightGraph, chunks: Sequence[Sequence[int]], *, advance: Callable[[int], None] = lambda n_tokens: None
) -> dict[Address, Use]:
    """Runs chunks of token ids, each from an empty state; the use of every matrix by role and layer.

    `advance` is told the tokens done. Raises: as `Forward.extend`.
    """
    forward = _Observer(graph)
    for start in range(0, len(chunks), _BATCH):
        batch = chunks[start : start + _BATCH]
        for _ in forward.trace(batch):
            pass
        advance(sum(len(chunk) for chunk in batch))
    return {
        address: Use(sums.astype(np.float32), forward.counts[address].astype(np.float32))
        for address, sums in forward.sums.items()
    }


class _Observer(Forward):
    """The forward pass, which notes what every matrix of a layer is multiplied with."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph)
        self.sums: dict[Address, NDArray[np.float64]] = {}
        self.counts: dict[Address, NDArray[np.int64]] = {}

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        if weight.layer is not None:
            self._note(weight, x, rows.get("expert") or 0)
        return super().linear(x, weight, bias, **rows)

    def _note(self, weight: Weight, x: Float32, which: int) -> None:
        n_slices = weight.shape[0] if len(weight.shape) == 3 else 1
        # Experts may run side by side, each with a slice of its own: of two that are first, one makes the arrays.
        sums = self.sums.setdefault(weight.address, np.zeros((n_slices, x.shape[1])))
        counts = self.counts.setdefault(weight.address, np.zeros(n_slices, np.int64))
        sums[which] += np.square(x, dtype=np.float64).sum(axis=0)
        counts[which] += len(x)
