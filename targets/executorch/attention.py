"""Grouped-query attention: norms of heads, rotation, window, gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...graph.blocks import Attention, Branch
from ...graph.roles import Role
from .branch import BranchModule, Call
from .constants import Constants
from .layout import HeadRegion, head_regions, held_window
from .regions import call_region, mean_square

_BIASES = Role.ATTN_Q_BIAS, Role.ATTN_K_BIAS, Role.ATTN_V_BIAS, Role.ATTN_OUT_BIAS


class AttentionModule(BranchModule):
    """Attention over a cache [1, positions, kv_heads, head_dim]: of the context, or a ring as long as the window.

    Keys and values are written at the position they belong to and masked by it: a new conversation needs no reset.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, branch: Branch, block: Attention, constants: Constants, layer: int, *, context: int) -> None:
        super().__init__(branch, constants, layer)
        self.block = block
        self.window = held_window(block, context)
        self.gains: list[str] = []
        if block.qk_norm:
            for head, role in (("q", Role.Q_NORM), ("k", Role.K_NORM)):
                for half, gain in enumerate(constants.vectors(role, layer)):
                    self.gains.append(f"{head}_gain{half}")
                    self.register_buffer(self.gains[-1], gain)
        self.biases = [f"bias{i}" for i in range(len(_BIASES) if block.is_biased else 0)]
        for name, role in zip(self.biases, _BIASES, strict=False):
            self.register_buffer(name, constants.vector(role, layer))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, self.window or context, block.n_kv_heads, block.head_dim))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        block, n = self.block, x.shape[1]
        biases = [getattr(self, name) for name in self.biases]
        q, k, v, *factors = self._projected(x, biases[:3])
        for region in head_regions(block):
            q, k = self._through(region, (q, k), call)
        attended = self._attended(q, k, v, call)
        if factors:
            (attended,) = call_region(f"gate.{self.layer}", [attended, *factors], [block.head_dim])
        return self.add("attention_out", x, [attended.view(1, n, block.q_size), *biases[3:]])

    def _projected(self, x: Tensor, biases: list[Tensor]) -> list[Tensor]:
        """Queries, keys, values [1, S, heads, head_dim] and, of gated heads, what each is multiplied with [1, S, heads, 1]."""
        block, n = self.block, x.shape[1]
        sizes = [block.q_size, block.kv_size, block.kv_size]
        inputs = [*self.normed(x), *biases]
        if not block.is_gated:
            parts = call_region(f"attention_in.{self.layer}", inputs, sizes)
        else:
            *parts, factors = call_region(f"attention_in_gated.{self.layer}", inputs, [*sizes, block.n_heads])
        heads = [part.view(1, n, -1, block.head_dim) for part in parts]
        return [*heads, factors.unsqueeze(-1)] if block.is_gated else heads

    def _through(self, region: HeadRegion, heads: Sequence[Tensor], call: Call) -> list[Tensor]:
        """Queries and keys after one of the regions that norm or turn them."""
        block, inputs = self.block, []
        if region.norms and block.qk_norm:
            inputs += [mean_square(each, block.qk_norm.eps) for each in heads]
            inputs += [getattr(self, name) for name in self.gains]
        if region.turns and block.rope:
            inputs += call.rotations[block.rope]
        parts = [self._parts(each, region) for each in heads]
        name = f"{region.name}.{self.layer}"
        return call_region(name, [*parts[0], *parts[1], *inputs], [block.head_dim] * 2, like=[0, len(parts[0])])

    def _parts(self, heads: Tensor, region: HeadRegion) -> Sequence[Tensor]:
        """Two halves; of heads that turn in part the two paired parts and the rest."""
        if not region.has_rest or self.block.rope is None:
            return heads.chunk(2, dim=-1)
        paired = self.block.rope.n_dims // 2
        return torch.split(heads, [paired, paired, self.block.head_dim - 2 * paired], dim=-1)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        if self.window:
            return call.windows[self.window].attend(q, k, v, self.keys, self.values, scale=self.block.score_scale)
        torch.ops.llama.update_cache(k, self.keys, call.start)
        torch.ops.llama.update_cache(v, self.values, call.start)
        found: Tensor = torch.ops.llama.custom_sdpa(
            q, self.keys, self.values, call.start, None, 0.0, True, self.block.score_scale
        )
        return found
