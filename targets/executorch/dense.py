"""The feed-forward of all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ...graph.blocks import Branch, Dense
from .branch import BranchModule, Call
from .constants import Constants
from .regions import COEFFICIENTS, DENSE


class DenseModule(BranchModule):
    """down(activation(gate x') * up x'), x' the norm of x."""

    def __init__(self, branch: Branch, block: Dense, constants: Constants, layer: int) -> None:
        super().__init__(branch, constants, layer)
        self.kind = DENSE[block.activation]
        self.coefficients = [f"coefficient{i}" for i in range(len(COEFFICIENTS[block.activation]))]
        for name, value in zip(self.coefficients, COEFFICIENTS[block.activation], strict=True):
            self.register_buffer(name, torch.tensor([value]))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        coefficients = [getattr(self, name) for name in self.coefficients]
        return self.add(self.kind, x, [*self.normed(x)[1:], *coefficients])
