"""What the module's constants are while it is traced: stand-ins for matrices, the real values for the rest.

Lowering copies every constant it meets several times. A matrix is therefore traced as zeros of its shape,
which the system never backs with memory, behind a mark made from the hash of its encoded bytes; the writer
later finds the marks and puts the encoded file ranges in their place (see `substitute`). Since the mark
follows the content, equal matrices get equal marks and different ones never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...convert.model.config import ModelConfig
from ...convert.model.graph import Role
from ...convert.plans import TensorPlan

_MARK_NIBBLES = 32


@dataclass(frozen=True)
class Piece:
    """One part of one encoded matrix in the scratch file. Units: bytes."""

    label: str
    path: Path
    offset: int
    nbytes: int
    dtype: np.dtype[np.generic]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            found = hashlib.sha256()
            left = self.nbytes
            while left:
                data = file.read(min(left, 8 << 20))
                found.update(data)
                left -= len(data)
        return found.hexdigest()

    @cached_property
    def nibbles(self) -> NDArray[np.uint8]:
        return np.array([int(digit, 16) for digit in self.digest[:_MARK_NIBBLES]], np.uint8)

    def read(self) -> NDArray[np.generic]:
        """The bytes as a flat array, mapped from the file."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.nbytes // self.dtype.itemsize,))
