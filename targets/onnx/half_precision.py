"""Counts what half precision loses of the weights, and of the scales of packed weights, that are stored in it.

A value beyond ±65504 stops the conversion. One below half of the least subnormal becomes zero, and one below
the normal range keeps fewer bits; WebGPU may treat that as zero as well.
Source: IEEE 754-2019 binary16; WGSL specification, 15.7.2, "flush to zero".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...graph.dtypes import Float32
from ...graph.tensor import TensorView
from ...quantize.encodings.int_block import IntBlock32
from ..plans import TensorPlan

_LARGEST_ZERO = np.float32(2**-25)
_LEAST_NORMAL = np.float32(2**-14)
_LEAST_NORMAL_BITS = np.uint16(1 << 10)  # the same in float16
_CHUNK = 1 << 22


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


def count_scales(tensors: Iterable[TensorPlan], folder: Path) -> str | None:
    """What was stored of float16 scales, for the manifest; None if there are none.

    A scale of zero is a block of zeros, which the checkpoint may hold as well.
    """
    n_seen = n_zero = n_subnormal = 0
    for tensor in tensors:
        if not isinstance(tensor.encoding, IntBlock32) or tensor.encoding.scale_dtype != np.float16:
            continue
        place, n_left = tensor.placements[1], tensor.view.n_rows * tensor.view.n_cols // tensor.encoding.block
        n_seen += n_left
        with (folder / place.path).open("rb") as file:
            file.seek(place.offset)
            while n_left:
                magnitudes = np.fromfile(file, "<u2", min(n_left, _CHUNK)) & np.uint16(0x7FFF)
                n_left -= len(magnitudes)
                n_zeros = int(np.count_nonzero(magnitudes == 0))
                n_zero += n_zeros
                n_subnormal += int(np.count_nonzero(magnitudes < _LEAST_NORMAL_BITS)) - n_zeros
    if not n_seen:
        return None
    return f"of {n_seen:,} scales stored in float16 none overflows, {n_zero:,} are zero, {n_subnormal:,} are subnormal"


class _Watched(TensorView):
    is_observed = True

    def __init__(self, view: TensorView, counter: HalfCounter) -> None:
        super().__init__(view.name, view.dtype, view.shape)
        self._view, self._counter = view, counter

    def _rows(self, start: int, stop: int) -> Float32:
        values = self._view.rows(start, stop)
        self._counter.count(values)
        return values

    def place(self, row: int) -> tuple[str, int]:
        return self._view.place(row)
