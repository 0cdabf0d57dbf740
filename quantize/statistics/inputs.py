"""Which matrices are multiplied with the same input, so that it is looked at once."""

from __future__ import annotations

from collections.abc import Mapping

from ...graph.roles import Address, Role

# A matrix, and the one of the same layer whose input it shares.
_SHARED: Mapping[Role, Role] = {
    Role.ATTN_K: Role.ATTN_Q,
    Role.ATTN_V: Role.ATTN_Q,
    Role.ATTN_GATE: Role.ATTN_Q,
    Role.FFN_UP: Role.FFN_GATE,
    Role.EXPERT_UP: Role.EXPERT_GATE,
}


def input_of(address: Address) -> Address:
    """The matrix under whose address the input of this one is kept: itself, or the first that shares it."""
    role, layer = address
    return _SHARED.get(role, role), layer
