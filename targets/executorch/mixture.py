"""Mixture of experts in two forms: a region an expert that runs only if a token chose it, or one operator a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...graph.blocks import Branch, Mixture, Scoring
from ...graph.roles import Role
from .branch import BranchModule, Call
from .constants import Constants
from .fused import has_factor
from .regions import EXPERT, ROUTERS, call_region, mean_square, scores_of


def choose(scores: Tensor, bias: Tensor | None, block: Mixture) -> tuple[Tensor, Tensor]:
    """The experts of each token, ranked with the bias, and their scores without it: both [..., k]."""
    chosen = torch.topk(scores if bias is None else scores + bias, block.top_k, dim=-1).indices
    return chosen, torch.gather(scores, -1, chosen)


class MixtureModule(BranchModule):
    """The sum of the chosen experts' contributions, each expert a region."""

    bias: Tensor | None

    def __init__(self, branch: Branch, block: Mixture, constants: Constants, layer: int) -> None:
        super().__init__(branch, constants, layer)
        self.block = block
        self.register_buffer("bias", constants.vector(Role.EXPERT_BIAS, layer) if block.has_bias else None)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        hidden, n_experts = x.shape[-1], self.block.n_experts
        normed, scores = call_region(f"{ROUTERS[self.block.scoring]}.{self.layer}", self.normed(x), [hidden, n_experts])
        shares = self._shares(scores)
        is_used = (shares != 0).any(dim=1)[0]
        # each contribution is used up before the next branch of the program runs: see `call_if`
        total = x if self.adds_as_it_is else torch.zeros_like(x)
        # a trace takes the first expert only, of which `experts.py` makes the others
        for expert in range(1 if torch.compiler.is_exporting() else n_experts):
            inputs = [normed, shares[:, :, expert : expert + 1], is_used[expert]]
            total = total + call_region(f"{EXPERT}.{self.layer}.{expert}", inputs, [hidden])[0]
        return total if self.adds_as_it_is else self.add_found(x, total)

    def _shares(self, scores: Tensor) -> Tensor:
        """What each expert's output is multiplied with, [1, S, E]: chosen with the bias, weighted without."""
        chosen, weights = choose(scores, self.bias, self.block)
        if self.block.is_normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + self.block.sum_eps)
        if self.block.scaling != 1.0:
            weights = weights * self.block.scaling
        return torch.zeros_like(scores).scatter(-1, chosen, weights)


class FusedMixtureModule(BranchModule):
    """`llama::quantized_moe_ffn`, which routes, runs the chosen experts and sums them.

    The operator divides the chosen scores by their sum, no more and no less; what a block does beside that, a small
    addition to the sum or no division at all, is a factor of its result.
    """

    router: Tensor
    bias: Tensor
    experts_in: Tensor
    experts_out: Tensor

    def __init__(self, branch: Branch, block: Mixture, constants: Constants, layer: int) -> None:
        super().__init__(branch, constants, layer)
        self.block = block
        self.register_buffer("router", constants.vector(Role.ROUTER, layer))
        # with scores by softmax the operator takes none, which is an empty one
        n_zeros = block.n_experts if block.scoring is Scoring.SIGMOID else 0
        bias = constants.vector(Role.EXPERT_BIAS, layer) if block.has_bias else torch.zeros(n_zeros)
        self.register_buffer("bias", bias)
        for name in ("experts_in", "experts_out"):
            operand, values = constants.operand(name, layer)
            self.group = operand.tensors[0].encoding.block
            self.register_buffer(name, values)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        block = self.block
        normed = (x * torch.rsqrt(mean_square(x, self.eps)) * self.gain).squeeze(0)
        factor = self._factor(normed)
        summed = torch.ops.llama.quantized_moe_ffn(
            normed, self.router, self.bias, self.experts_in, self.experts_out,
            block.top_k, block.n_experts, block.size, x.shape[-1], self.group, 4, block.scoring.value, block.scaling,
        )  # fmt: skip
        found: Tensor = (summed if factor is None else summed * factor).unsqueeze(0)
        return x + found if self.adds_as_it_is else self.add_found(x, found)

    def _factor(self, normed: Tensor) -> Tensor | None:
        """What the operator's result is multiplied with, [S, 1]; None where it does all that the block does."""
        block = self.block
        if not has_factor(block):
            return None
        scores = scores_of(linear(normed, self.router), block.scoring)
        total = choose(scores, self.bias if self.bias.numel() else None, block)[1].sum(dim=-1, keepdim=True)
        return total / (total + block.sum_eps) if block.is_normalised else total
