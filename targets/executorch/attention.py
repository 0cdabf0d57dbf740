"""Grouped-query attention: norms of heads, rotation, window, gate."""

from __future__ import annotations

import torch
from torch import Tensor

from ...graph.blocks import Attention, Branch
from ...graph.roles import Role
from .branch import BranchModule, Call
from .constants import Constants
from .layout import held_window
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
        q, k = self._turned(q, k, call)
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

    def _turned(self, q: Tensor, k: Tensor, call: Call) -> list[Tensor]:
        """Queries and keys, normed and turned as their block says."""
        block = self.block
        gains = [getattr(self, name) for name in self.gains]
        squares = [mean_square(heads, block.qk_norm.eps) for heads in (q, k)] if block.qk_norm else []
        rotation = call.rotations[block.rope] if block.rope else ()
        kind = {(True, True): "rotate", (True, False): "norm_heads", (False, True): "turn"}
        name = kind.get((bool(block.qk_norm), bool(block.rope)))
        if name is None:
            return [q, k]
        inputs = [*q.chunk(2, dim=-1), *k.chunk(2, dim=-1), *squares, *gains, *rotation]
        return call_region(f"{name}.{self.layer}", inputs, [block.head_dim] * 2, like=[0, 2])

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        if self.window:
            return call.windows[self.window].attend(q, k, v, self.keys, self.values)
        torch.ops.llama.update_cache(k, self.keys, call.start)
        torch.ops.llama.update_cache(v, self.values, call.start)
        found: Tensor = torch.ops.llama.custom_sdpa(q, self.keys, self.values, call.start, None, 0.0, True)
        return found
