"""Attention that sees the last positions only: a ring of keys and values, and time and memory linear in a call's length.

The ring holds the last `size` positions before a call, position p in slot p % size; nothing grows. The first `size`
queries of a call see the ring and the call's own first keys. Later queries no longer reach the ring: they come in
blocks, each of which sees the keys of its block and of the one before. One mask of all queries and keys would grow
with the square of the call's length, and be planned for the longest there may be.
Source: executorch `extension/llm/custom_ops/op_sdpa_impl.h`, `op_update_cache.cpp`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


class Window:
    """What layers of one window share in one call: masks, which rows make a block, where the ring takes new ones.

    Of a call without later queries, the block is one query that nobody reads: operators take no empty tensors.
    """

    def __init__(self, size: int, input_pos: Tensor, n_tokens: int, *, context: int) -> None:
        tokens = torch.arange(n_tokens)
        positions = input_pos + tokens
        last = tokens[-1:]
        self.size, self.tokens = size, tokens
        self.slots = (positions % size)[None]
        self.n_first = _number((last + 1).clamp(max=size), most=min(size, context))
        torch._check(self.n_first <= n_tokens)  # type: ignore[no-untyped-call]
        # slot s holds the greatest position up to `before` that is s modulo the size, negative if none yet; the
        # remainder of a negative number is not the same in torch and ExecuTorch
        before = input_pos - 1
        first = positions.narrow(0, 0, self.n_first)
        keys = torch.cat([before - (before + size - torch.arange(size)) % size, first])
        self.first_mask = _hiding((keys < 0) | _is_outside(first[:, None] - keys, size))

        length = (last + 1 - size).clamp(0, 1) * (size - 1) + 1
        self.length = _number(length, most=size)
        self.n_blocks = _number((last // size).clamp(min=1), most=max(1, (context - 1) // size))
        starts = (torch.arange(self.n_blocks)[:, None] + 1) * length
        queries, keys = torch.arange(self.length), torch.arange(2 * self.length) - length
        self.mask = _hiding(_is_outside(queries[:, None] - keys, length))
        self.query_rows = torch.minimum(starts + queries, last).view(-1)
        self.key_rows = torch.minimum(starts + keys, last).view(-1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ring_keys: Tensor, ring_values: Tensor, *, scale: float | None
    ) -> Tensor:
        """Attention of a call's queries, [1, S, heads, head_dim]; afterwards the ring holds the call's last keys.

        `scale` is what scores are multiplied with, where that is not 1 / sqrt(head_dim).
        """
        sdpa, update = torch.ops.llama.custom_sdpa, torch.ops.llama.update_cache_with_indices
        n = self.n_first
        keys, values = (
            torch.cat([ring, new.narrow(1, 0, n)], dim=1) for ring, new in ((ring_keys, k), (ring_values, v))
        )
        first = sdpa(q.narrow(1, 0, n), keys, values, 0, self.first_mask, 0.0, False, scale)
        rows = self.query_rows, self.key_rows, self.key_rows
        blocks = [
            x.index_select(1, chosen).view(self.n_blocks, -1, *x.shape[2:])
            for x, chosen in zip((q, k, v), rows, strict=True)
        ]
        later = sdpa(*blocks, 0, self.mask, 0.0, False, scale)
        update(k, ring_keys, 0, self.slots)
        update(v, ring_values, 0, self.slots)
        found = torch.cat([first, later.view(1, -1, *q.shape[2:])], dim=1)
        return found.index_select(1, self.tokens)


def _number(values: Tensor, *, most: int) -> int:
    """A tensor's one element as a size that the program computes, from 1 to `most`."""
    found = cast(int, values[0].item())
    torch._check(found >= 1)  # type: ignore[no-untyped-call]
    torch._check(found <= most)  # type: ignore[no-untyped-call]
    return found


def _is_outside(distance: Tensor, size: int | Tensor) -> Tensor:
    """Whether a key lies behind a query by less than nothing, or by the window or more."""
    return (distance < 0) | (distance >= size)


def _hiding(is_hidden: Tensor) -> Tensor:
    """What is added to scores."""
    return torch.where(is_hidden, float("-inf"), 0.0)
