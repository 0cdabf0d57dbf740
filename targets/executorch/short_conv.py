"""The gated short convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ...graph.blocks import Branch, ShortConv
from ...graph.roles import Role
from .branch import BranchModule, Call
from .constants import Constants
from .regions import call_region


class ShortConvModule(BranchModule):
    """out(C * conv(B * x')), x' the third part of the projection; the last width - 1 products B * x' are kept.

    They have no position to be masked by, so they are taken as zeros whenever a call starts at position 0: a new
    conversation needs no other reset.
    """

    window: Tensor

    def __init__(self, branch: Branch, block: ShortConv, constants: Constants, layer: int) -> None:
        super().__init__(branch, constants, layer)
        self.width = block.width
        taps = constants.vectors(Role.CONV_KERNEL, layer)
        self.hidden = len(taps[0])
        self.register_buffer("window", torch.zeros(1, self.width - 1, self.hidden))
        self.taps = [f"tap{k}" for k in range(self.width)]
        for name, tap in zip(self.taps, taps, strict=True):
            self.register_buffer(name, tap)
        self.biases: list[str] = []
        if block.is_biased:
            for role in (Role.CONV_IN_BIAS, Role.CONV_KERNEL_BIAS, Role.CONV_OUT_BIAS):
                for bias in constants.vectors(role, layer):
                    self.biases.append(f"bias{len(self.biases)}")
                    self.register_buffer(self.biases[-1], bias)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        biases = [getattr(self, name) for name in self.biases]
        inputs = [*self.normed(x), *biases[:3]]
        gated, c = call_region(f"conv_in.{self.layer}", inputs, [self.hidden, self.hidden])
        n_past = self.width - 1
        # rows of zeros or of the window: torch.where chooses element by element, which takes ten times as long
        rows = (call.input_pos > 0) * n_past + torch.arange(n_past)
        past = torch.cat([torch.zeros_like(self.window), self.window], dim=1).index_select(1, rows)
        window = torch.cat([past, gated], dim=1)
        self.window.copy_(window[:, -n_past:])
        shifted = [window[:, k : k + x.shape[1]] for k in range(self.width)]
        taps = [getattr(self, name) for name in self.taps]
        return self.add("conv_out_biased" if biases else "conv_out", x, [c, *biases[3:], *shifted, *taps])
