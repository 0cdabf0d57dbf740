"""The constants of the module, out of the scratch file that holds every encoded tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...convert.model.graph import Role
from ...convert.plans import Placement, TensorPlan
from .layout import n_cuts, parts_of
from .regions import REGIONS, RegionName


@dataclass(frozen=True)
class Piece:
    """One part of one encoded matrix in the scratch file. Units: bytes."""

    label: str
    path: Path
    offset: int
    nbytes: int
    dtype: np.dtype[Any]

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


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] of a region and the pieces it is stored in."""

    encoding: str
    shape: tuple[int, int]
    pieces: tuple[Piece, ...]


class Constants:
    """Hands out constants: small ones and the token table as tensors, matrices as pieces of the file.

    `tensors` place their parts in one scratch file in `folder`, already written. `index` gets the label and the
    hash of every constant handed out as a tensor.
    """

    def __init__(self, tensors: Sequence[TensorPlan], folder: Path) -> None:
        self._folder = folder
        self._tensors = {(tensor.role, tensor.layer): tensor for tensor in tensors}
        self.index: dict[str, str] = {}

    def vector(self, role: Role, layer: int | None) -> Tensor:
        (whole,) = self.vectors(role, layer)
        return whole

    def vectors(self, role: Role, layer: int | None) -> list[Tensor]:
        """The cuts of a float32 tensor: columns of a conv kernel, runs of elements of anything else."""
        tensor = self._tensors[role, layer]
        values = torch.from_numpy(self._map(tensor.placements[0], np.dtype("<f4"), tensor.shape).copy())
        count = n_cuts(tensor)
        cuts = values.unbind(1) if role is Role.CONV_KERNEL else values.chunk(count)
        return [self._indexed(f"{tensor.name}.{i}.values", cut.contiguous()) for i, cut in enumerate(cuts)]

    def embedding(self) -> tuple[str, list[Tensor]]:
        """The encoding of the token table and its parts [V, ...], mapped from the file."""
        tensor = self._tensors[Role.EMBED, None]
        found = []
        for part, placement in zip(parts_of(tensor), tensor.placements, strict=True):
            array = self._map(placement, part.dtype, (tensor.view.n_rows, *part.row_shape))
            found.append(self._indexed(f"{tensor.name}.0.{part.name}", torch.from_numpy(array)))
        return tensor.encoding.name, found

    def matrices(self, name: RegionName) -> list[Matrix]:
        """The matrices of a region, in the order its function takes them."""
        found = []
        for role in REGIONS[name.kind].matrices:
            tensor = self._tensors[role, name.layer]
            cuts = range(n_cuts(tensor)) if name.expert is None else [name.expert]
            found += [self._matrix(tensor, cut) for cut in cuts]
        return found

    def _matrix(self, tensor: TensorPlan, cut: int) -> Matrix:
        n_rows = tensor.view.n_rows // n_cuts(tensor)
        pieces = [
            Piece(
                label=f"{tensor.name}.{cut}.{part.name}",
                path=self._folder / placement.path,
                offset=placement.offset + cut * n_rows * part.row_nbytes,
                nbytes=n_rows * part.row_nbytes,
                dtype=part.dtype,
            )
            for part, placement in zip(parts_of(tensor), tensor.placements, strict=True)
        ]
        return Matrix(tensor.encoding.name, (n_rows, tensor.view.n_cols), tuple(pieces))

    def _map(self, placement: Placement, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        # copy-on-write, since torch demands memory it may write to
        return np.memmap(self._folder / placement.path, dtype, "c", placement.offset, shape)

    def _indexed(self, label: str, values: Tensor) -> Tensor:
        self.index[label] = hashlib.sha256(values.numpy().data).hexdigest()
        return values
