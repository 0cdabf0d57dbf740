"""Importance by calibration: how large each column of a weight's input is over a text, from our own forward pass.

For every matrix of the layers, and every expert of a stack, the squared inputs of each column are summed over the
tokens that reach it. The head and the embedding are left out, as llama-imatrix leaves them out.
Source: llama.cpp `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..convert.model.dtypes import Float32
from ..convert.model.forward import Forward
from ..convert.model.graph import Role, Weight, WeightGraph
from ..convert.model.tensor import TensorView

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
) -> dict[tuple[Role, int | None], Use]:
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
        self._watched = {
            id(weight.view): weight for weight in graph.weights() if weight.layer is not None and len(weight.shape) > 1
        }
        self.sums: dict[tuple[Role, int | None], NDArray[np.float64]] = {}
        self.counts: dict[tuple[Role, int | None], NDArray[np.int64]] = {}

    def _linear(
        self, x: Float32, view: TensorView, bias: TensorView | None = None, *, start: int = 0, count: int = -1
    ) -> Float32:
        weight = self._watched.get(id(view))
        if weight is not None:
            self._note(weight, x, start)
        return super()._linear(x, view, bias, start=start, count=count)

    def _note(self, weight: Weight, x: Float32, first_row: int) -> None:
        n_slices = weight.shape[0] if len(weight.shape) == 3 else 1
        address = (weight.role, weight.layer)
        # Experts may run side by side, each with a slice of its own: of two that are first, one makes the arrays.
        sums = self.sums.setdefault(address, np.zeros((n_slices, x.shape[1])))
        counts = self.counts.setdefault(address, np.zeros(n_slices, np.int64))
        which = first_row // (weight.view.n_rows // n_slices)
        sums[which] += np.square(x, dtype=np.float64).sum(axis=0)
        counts[which] += len(x)
