"""The model as a torch module that torch.export can trace: the graph's forward with caches inside.

What XNNPACK computes is a call of a region (`regions.py`), lowered once a kind and not once a layer; the
rest, such as caches and attention, is traced here. Each kind of block is a file beside this one.
Shapes: tokens int64 [1, S] and the start position int64 [1] give logits float32 [1, V] of the last token.
Source: graph/reference/forward.py, which this must agree with.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...graph.blocks import Attention, Branch, Dense, Mixture, ShortConv
from ...graph.graph import WeightGraph
from ...graph.roles import Role
from ...graph.rotary import inverse_frequencies
from .attention import AttentionModule
from .branch import BranchModule, Call, Rotation
from .constants import Constants
from .dense import DenseModule
from .layout import held_window
from .mixture import FusedMixtureModule, MixtureModule
from .regions import call_region, mean_square
from .short_conv import ShortConvModule
from .window import Window


class Model(nn.Module):
    """The whole model. `context` is the number of positions it was made for."""

    gain: Tensor

    def __init__(self, graph: WeightGraph, constants: Constants, *, context: int) -> None:
        super().__init__()
        config = graph.config
        self.context, self.vocab_size, self.eps = context, config.vocab_size, config.final_norm.eps
        self.embedding_scale, self.logit_scale = config.embedding_scale, config.logit_scale
        self.embed = Embedding(constants)
        self.blocks = nn.ModuleList(
            _branch_module(branch, constants, layer.index, context)
            for layer in graph.layers
            for branch in layer.branches
        )
        self.register_buffer("gain", constants.vector(Role.FINAL_NORM, None))
        attention = config.of_kind(Attention).values()
        self.ropes = config.ropes
        self.windows = sorted({window for block in attention if (window := held_window(block, context))})
        for i, rope in enumerate(self.ropes):
            self.register_buffer(f"inverse_frequencies{i}", torch.from_numpy(inverse_frequencies(rope)))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        start = cast(int, input_pos[0].item())
        torch._check(start >= 0)  # type: ignore[no-untyped-call]
        torch._check(start + tokens.shape[1] <= self.context)  # type: ignore[no-untyped-call]
        positions = (input_pos + torch.arange(tokens.shape[1])).to(torch.float32)
        rotations = {rope: self._rotation(i, positions) for i, rope in enumerate(self.ropes)}
        windows = {size: Window(size, input_pos, tokens.shape[1], context=self.context) for size in self.windows}
        call = Call(input_pos, start, rotations, windows)
        x = self.embed(tokens)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        for block in self.blocks:
            x = block(x, call)
        last = x[:, -1, :]
        (logits,) = call_region("head", [last, mean_square(last, self.eps), self.gain], [self.vocab_size])
        return logits if self.logit_scale == 1 else logits * self.logit_scale

    def _rotation(self, index: int, positions: Tensor) -> Rotation:
        """Cosines and sines of a rope; of a pair that does not turn they are exactly 1 and 0."""
        angles = positions[:, None, None] * getattr(self, f"inverse_frequencies{index}")
        cos, sin, factor = torch.cos(angles), torch.sin(angles), self.ropes[index].factor
        return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def _branch_module(branch: Branch, constants: Constants, layer: int, context: int) -> BranchModule:
    match branch.block:
        case ShortConv() as block:
            return ShortConvModule(branch, block, constants, layer)
        case Attention() as block:
            return AttentionModule(branch, block, constants, layer, context=context)
        case Dense() as block:
            return DenseModule(branch, block, constants, layer)
        case Mixture() as block:
            kind = FusedMixtureModule if constants.is_fused(layer) else MixtureModule
            return kind(branch, block, constants, layer)


class Embedding(nn.Module):
    """The token table, float32 or in the integers of `embedding_4bit` and `embedding_byte`."""

    table: Tensor
    scales: Tensor

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.encoding, parts = constants.embedding()
        self.register_buffer("table", parts[0])
        self.register_buffer("scales", parts[1] if len(parts) > 1 else None)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.encoding == "F32":
            return functional.embedding(tokens, self.table)
        integers = torch.ops.quantized_decomposed
        if self.encoding == "et_embed8":
            return integers.embedding_byte.dtype(self.table, self.scales, None, -128, 127, tokens, dtype=torch.float32)
        return integers.embedding_4bit.dtype(self.table, self.scales, None, -8, 7, tokens, dtype=torch.float32)
