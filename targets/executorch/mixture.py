"""Mixture of experts for XNNPACK: each expert is a region that runs only if a token chose it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...convert.model.config import ModelConfig
from ...convert.model.graph import Role
from .constants import Constants
from .regions import EXPERT, call_region, mean_square


class Mixture(nn.Module):
    """x + the chosen experts' contributions."""

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
        ranked = scores if self.bias is None else scores + self.bias
        chosen = torch.topk(ranked, self.moe.top_k, dim=-1).indices
        weights = torch.gather(scores, -1, chosen)
        if self.moe.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        if self.moe.routed_scaling_factor != 1.0:
            weights = weights * self.moe.routed_scaling_factor
        return torch.zeros_like(scores).scatter(-1, chosen, weights)
