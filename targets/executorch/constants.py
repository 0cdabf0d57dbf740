"""The constants of the module, out of the scratch file that holds every encoded tensor."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graph.roles import Role, Trait
from ..plans import TensorPlan
from .fused import HEADER, Operand, is_tiled, operands
from .layout import n_cuts, parts_of
from .regions import REGIONS, RegionName
from .stored import Piece, Stored

_MARK_BYTES = 16


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] of a region and the pieces it is stored in."""

    encoding: str
    shape: tuple[int, int]
    pieces: tuple[Piece, ...]


class Constants:
    """Hands out constants: small ones as tensors, large ones as stand-ins, matrices of delegates as pieces of the file.

    `tensors` place their parts in one scratch file in `folder`, already written. `index` gets the label and the
    hash of every constant handed out as a tensor. A stand-in is zeros that the system never backs with memory,
    behind a mark by which `stored` knows what is to be written in its place.
    """

    def __init__(self, tensors: Sequence[TensorPlan], folder: Path) -> None:
        self._folder = folder
        self._tensors = {(tensor.role, tensor.layer): tensor for tensor in tensors}
        self._operands = {operand.label: operand for operand in operands(tensors)}
        self._stored: dict[bytes, Stored] = {}
        self.index: dict[str, str] = {}

    def vector(self, role: Role, layer: int | None) -> Tensor:
        (whole,) = self.vectors(role, layer)
        return whole

    def vectors(self, role: Role, layer: int | None) -> list[Tensor]:
        """The cuts of a float32 tensor: columns of a conv kernel, runs of elements of anything else."""
        tensor = self._tensors[role, layer]
        place = tensor.placements[0]
        read = np.fromfile(self._folder / place.path, "<f4", math.prod(tensor.shape), offset=place.offset)
        values = torch.from_numpy(read.reshape(tensor.shape))
        count = n_cuts(tensor)
        cuts = values.unbind(1) if role.trait is Trait.KERNEL else values.chunk(count)
        return [self._indexed(f"{tensor.name}.{i}.values", cut.contiguous()) for i, cut in enumerate(cuts)]

    def embedding(self) -> tuple[str, list[Tensor]]:
        """The encoding of the token table and stand-ins of its parts [V, ...]."""
        tensor = self._tensors[Role.EMBED, None]
        pieces = self._matrix(tensor, 0).pieces
        shapes = [(tensor.view.n_rows, *part.row_shape) for part in parts_of(tensor)]
        found = [
            self._stand_in(piece.label, shape, piece.dtype, [piece])
            for piece, shape in zip(pieces, shapes, strict=True)
        ]
        return tensor.encoding.name, found

    def is_fused(self, layer: int) -> bool:
        """Whether the experts of a layer are operands of one operator."""
        return is_tiled(self._tensors[Role.EXPERT_GATE, layer])

    def operand(self, name: str, layer: int) -> tuple[Operand, Tensor]:
        """The operand `experts_in` or `experts_out` of a layer and its stand-in [E, bytes]."""
        operand = self._operands[f"{name}.{layer}"]
        pieces: list[bytes | Piece] = []
        for tensor, expert, _, _ in operand.places():
            if tensor is operand.tensors[0]:
                pieces.append(HEADER)
            pieces += self._matrix(tensor, expert).pieces
        shape = operand.n_experts, operand.expert_nbytes
        return operand, self._stand_in(operand.label, shape, np.dtype("u1"), pieces)

    def stands_in(self, constant: Tensor) -> bool:
        return constant.numel() > 0 and bytes(constant.view(-1).view(torch.uint8)[:_MARK_BYTES]) in self._stored

    def stored(self, emitted: bytes) -> bytes | Stored:
        """What to write for the bytes of a constant: themselves, or what they stand in for."""
        return self._stored.get(emitted[:_MARK_BYTES], emitted)

    def matrices(self, name: RegionName) -> list[Matrix]:
        """The matrices of a region, in the order its function takes them."""
        found = []
        for role in REGIONS[name.kind].matrices:
            tensor = self._tensors[role, name.layer]
            cuts = range(n_cuts(tensor)) if name.expert is None else [name.expert]
            found += [self._matrix(tensor, cut) for cut in cuts]
        return found

    def n_experts(self, layer: int | None) -> int:
        return n_cuts(self._tensors[Role.EXPERT_GATE, layer])

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

    def _stand_in(
        self, label: str, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Sequence[bytes | Piece]
    ) -> Tensor:
        stored = Stored(pieces)
        mark = hashlib.md5(label.encode(), usedforsecurity=False).digest()
        self._stored[mark] = stored
        self.index[label] = stored.sha256().hex()
        zeros = np.zeros(shape, dtype)  # torch.zeros would touch every page
        zeros.reshape(-1).view(np.uint8)[:_MARK_BYTES] = np.frombuffer(mark, np.uint8)
        return torch.from_numpy(zeros)

    def _indexed(self, label: str, values: Tensor) -> Tensor:
        self.index[label] = hashlib.sha256(values.numpy().data).hexdigest()
        return values
