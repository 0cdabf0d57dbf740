"""Counts what half precision loses of the weights that are stored in it.

A weight beyond ±65504 stops the conversion. One below half of the least subnormal becomes zero, and one below
the normal range keeps fewer bits; WebGPU may treat that as zero as well.
Source: IEEE 754-2019 binary16; WGSL specification, 15.7.2, "flush to zero".
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...convert.model.dtypes import Float32
from ...convert.model.tensor import TensorView
from ...convert.plans import TensorPlan

_LARGEST_ZERO = np.float32(2**-25)
_LEAST_NORMAL = np.float32(2**-14)


class HalfCounter:
    """Counts while tensors are written. Units: elements."""

    def __init__(self) -> None:
        self.n_seen = self.n_zeroed = self.n_subnormal = 0
        self._lock = threading.Lock()

    def watch(self, tensors: Sequence[TensorPlan]) -> list[TensorPlan]:
        """The same tensors, weights that are stored as float16 counted as they are read."""
        return [
            replace(t, view=_Watched(t.view, self)) if t.role is not None and t.encoding.name == "F16" else t
            for t in tensors
        ]

    def count(self, values: Float32) -> None:
        magnitudes = np.abs(values[values != 0])
        zeroed = int(np.count_nonzero(magnitudes <= _LARGEST_ZERO))
        small = int(np.count_nonzero(magnitudes < _LEAST_NORMAL))
        with self._lock:
            self.n_seen += values.size
            self.n_zeroed += zeroed
            self.n_subnormal += small - zeroed

    @property
    def sentence(self) -> str:
        """What was counted, for the manifest."""
        return (
            f"of {self.n_seen:,} weights stored in float16 none overflows, {self.n_zeroed:,} become zero, "
            f"{self.n_subnormal:,} are subnormal"
        )


class _Watched(TensorView):
    def __init__(self, view: TensorView, counter: HalfCounter) -> None:
        super().__init__(view.name, view.dtype, view.shape)
        self._view, self._counter = view, counter

    def _rows(self, start: int, stop: int) -> Float32:
        values = self._view.rows(start, stop)
        self._counter.count(values)
        return values
