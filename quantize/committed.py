"""Encodings of which codes can be chosen anew while scales stay: what every code of a stored row stands for.

value = (levels[code] - zero) * scale + offset. Runs of columns of a row share zero, scale and offset.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import DType, Float32
from .encoding import Bytes, Encoding


class Committed(NamedTuple):
    """Codes of rows and what they count in.

    Shapes: codes [n, n_cols]; scales, zeros and offsets [n, runs]. Formats without zeros or offsets of their own have None.
    """

    codes: NDArray[np.uint8]
    scales: Float32
    zeros: Float32 | None = None
    offsets: Float32 | None = None


class Tunable(Encoding):
    """An encoding whose codes can be chosen by another than its encoder."""

    @property
    @abstractmethod
    def levels(self) -> Float32:
        """What each code stands for before it is scaled, by code; NaN for one that must not be stored."""

    @abstractmethod
    def committed(self, *parts: Bytes) -> Committed:
        """What stored parts hold."""

    @abstractmethod
    def recoded(self, parts: tuple[Bytes, ...], found: Committed) -> tuple[Bytes, ...]:
        """Parts with other codes, and, where the format `refits`, with other scales and offsets; given ones stay."""

    @property
    def refits(self) -> DType | None:
        """The float type in which each run has a scale, or a scale and an offset, of its own; None if scales must stay."""
        return None

    def values(self, found: Committed) -> Float32:
        """What `decode` gives of the parts that hold this."""
        values = self.levels[found.codes].reshape(*found.scales.shape, -1)
        if found.zeros is not None:
            values -= found.zeros[..., None]
        values *= found.scales[..., None]
        if found.offsets is not None:
            values += found.offsets[..., None]
        return values.reshape(found.codes.shape)


def integer_levels(n_bits: int, *, zero: int = 0, lowest: int = 0) -> Float32:
    """Levels of unsigned codes around a zero point; codes below the lowest are not to be stored."""
    levels = np.arange(2**n_bits, dtype=np.float32) - np.float32(zero)
    levels[:lowest] = np.nan
    return levels
