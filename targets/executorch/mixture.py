"""Mixture of experts in two forms: a region an expert that runs only if a token chose it, or one operator a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...convert.model.config import ModelConfig, MoEConfig
from ...convert.model.graph import Role
from .constants import Constants
from .regions import EXPERT, call_region, mean_square

# Added to what the chosen scores are divided by.
_EPS = 1e-6


def choose(scores: Tensor, bias: Tensor | None, moe: MoEConfig) -> tuple[Tensor, Tensor]:
    """The experts of each token, ranked with the bias, and their scores without it: both [..., k]."""
    chosen = torch.topk(scores if bias is None else scores + bias, moe.top_k, dim=-1).indices
    return chosen, torch.gather(scores, -1, chosen)


class Mixture(nn.Module):
    """x + the chosen experts' contributions, each expert a region."""

    gain: Tensor
    bias: Tensor | None

    def __init__(self, config: ModelConfig, constants: Constants, layer: int) -> None:
        super().__init__()
        if config.moe is None:
            raise ValueError("a dense config has no expert layers")
        self.layer, self.moe = layer, config.moe
        self.hidden, self.eps = config.hidden_size, config.norm_eps
        self.register_buffer("gain", constants.vector(Role.FFN_NORM, layer))
        bias = constants.vector(Role.EXPERT_BIAS, layer) if self.moe.use_expert_bias else None
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        inputs = [x, mean_square(x, self.eps), self.gain]
        normed, scores = call_region(f"router.{self.layer}", inputs, [self.hidden, self.moe.n_experts])
        shares = self._shares(scores)
        is_used = (shares != 0).any(dim=1)[0]
        for expert in range(self.moe.n_experts):
            inputs = [normed, shares[:, :, expert : expert + 1], is_used[expert]]
            x = x + call_region(f"{EXPERT}.{self.layer}.{expert}", inputs, [self.hidden])[0]
        return x

    def _shares(self, scores: Tensor) -> Tensor:
        """What each expert's output is multiplied with, [1, S, E]: chosen with the bias, weighted without."""
        chosen, weights = choose(scores, self.bias, self.moe)
        if self.moe.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _EPS)
        if self.moe.routed_scaling_factor != 1.0:
            weights = weights * self.moe.routed_scaling_factor
        return torch.zeros_like(scores).scatter(-1, chosen, weights)


class FusedMixture(nn.Module):
    """x + `llama::quantized_moe_ffn`, which routes, runs the chosen experts and sums them.

    The operator divides the chosen scores by their sum, no more and no less; what LFM2 does beside that, a small
    addition to the sum or no division at all, is a factor of its result.
    """

    gain: Tensor
    router: Tensor
    bias: Tensor
    experts_in: Tensor
    experts_out: Tensor

    def __init__(self, config: ModelConfig, constants: Constants, layer: int) -> None:
        super().__init__()
        if config.moe is None:
            raise ValueError("a dense config has no expert layers")
        self.moe, self.hidden, self.eps = config.moe, config.hidden_size, config.norm_eps
        self.register_buffer("gain", constants.vector(Role.FFN_NORM, layer))
        self.register_buffer("router", constants.vector(Role.ROUTER, layer))
        has_bias = self.moe.use_expert_bias
        bias = constants.vector(Role.EXPERT_BIAS, layer) if has_bias else torch.zeros(self.moe.n_experts)
        self.register_buffer("bias", bias)
        for name in ("experts_in", "experts_out"):
            operand, values = constants.operand(name, layer)
            self.group = operand.tensors[0].encoding.block
            self.register_buffer(name, values)

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        normed = (x * torch.rsqrt(mean_square(x, self.eps)) * self.gain).squeeze(0)
        total = choose(torch.sigmoid(linear(normed, self.router)), self.bias, self.moe)[1].sum(dim=-1, keepdim=True)
        factor = total / (total + _EPS) if self.moe.norm_topk_prob else total
        summed = torch.ops.llama.quantized_moe_ffn(
            normed, self.router, self.bias, self.experts_in, self.experts_out,
            self.moe.top_k, self.moe.n_experts, self.moe.ffn_size, self.hidden, self.group, 4, "sigmoid",
            self.moe.routed_scaling_factor,
        )  # fmt: skip
        y: Tensor = x + (summed * factor).unsqueeze(0)
        return y
