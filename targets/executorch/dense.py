"""The feed-forward of all tokens."""

from __future__ import annotations

from torch import Tensor

from .branch import BranchModule, Call


class DenseModule(BranchModule):
    """down(silu(gate x') * up x'), x' the norm of x."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        return self.add("dense", x, self.normed(x)[1:])
