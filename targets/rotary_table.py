"""Cosines and sines of positions as constants that targets store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..graph.blocks import Rope
from ..graph.dtypes import DType, Float32
from ..graph.rotary import cosine, rotary_angles, sine
from ..graph.tensor import TensorView

RotaryFunction = Callable[..., Float32]
ROTARY_FUNCTIONS: tuple[tuple[str, RotaryFunction], ...] = (("cos", cosine), ("sin", sine))


class RotaryTable(TensorView):
    """Cosines or sines of the first positions, computed on demand: [n_positions, n_dims / 2]."""

    def __init__(self, name: str, rope: Rope, n_positions: int, function: RotaryFunction) -> None:
        super().__init__(name, DType.F32, (n_positions, len(rope.inverse_frequencies)))
        self._rope, self._function = rope, function

    def _rows(self, start: int, stop: int) -> Float32:
        found = self._function(rotary_angles(self._rope, start, stop))
        return found if self._rope.factor == 1 else found * np.float32(self._rope.factor)
