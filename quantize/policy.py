"""Policies: which weight gets which encoding.

A named quant of a target (`Q4_0`, `q4f16`) is a policy: rules in order, first match wins, and a
fallback for rows that an encoding's block does not divide. Policies are tables of data, one file a
target in `policies/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..graph.errors import UsageError
from ..graph.graph import Weight
from ..graph.roles import Role
from ..graph.tensor import Shape
from .encoding import Encoding, get_encoding, matrix_height

# Matrices of one input, which runtimes multiply by at once where they are stored alike. Source: llm-compressor
# `observers/helpers.py`, `FUSED_LAYER_NAMES`; vLLM `packed_modules_mapping` of its models.
PRODUCTS: tuple[frozenset[Role], ...] = (
    frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V}),
    frozenset({Role.FFN_GATE, Role.FFN_UP}),
    frozenset({Role.EXPERT_GATE, Role.EXPERT_UP}),
)


def product_of(role: Role) -> frozenset[Role]:
    """The roles of what is multiplied by at once with a weight of this one, itself among them."""
    return next((roles for roles in PRODUCTS if role in roles), frozenset({role}))


@dataclass(frozen=True)
class Rule:
    """Weights of these roles in these layers (all, if None) get this encoding."""

    encoding: str
    roles: frozenset[Role] | None = None
    layers: frozenset[int] | None = None

    def matches(self, weight: Weight) -> bool:
        return (self.roles is None or weight.role in self.roles) and (
            self.layers is None or weight.layer in self.layers
        )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A named quant. `fallbacks` maps an encoding to the one used for rows it cannot take."""

    name: str
    class_name: str
    rules: tuple[Rule, ...]
    fallbacks: Mapping[str, str] = field(default_factory=dict)

    def choose(self, weight: Weight) -> Choice:
        """The encoding of a weight, and why it is not the one the rules name, if it is not.

        Raises: UsageError if no rule or fallback can take the weight.
        """
        wanted = next((rule.encoding for rule in self.rules if rule.matches(weight)), None)
        if wanted is None:
            raise UsageError(f"policy '{self.name}' has no rule for {weight.role.value}")
        used, reason = wanted, None
        while (refusal := refusal_of(get_encoding(used), weight.shape)) is not None:
            reason = reason or refusal
            if used not in self.fallbacks:
                raise UsageError(f"tensor '{weight.view.name}' cannot be stored as {wanted}: {refusal}")
            used = self.fallbacks[used]
        return Choice(wanted, get_encoding(used), reason)


def refusal_of(encoding: Encoding, shape: Shape) -> str | None:
    """Why a tensor of this shape cannot be stored so, or None."""
    n_rows = matrix_height(shape)
    if n_rows % encoding.tile_rows and not encoding.may_be_short:
        return f"{n_rows} rows are not a multiple of the {encoding.tile_rows} that are stored together"
    return encoding.refusal(shape[-1])


@dataclass(frozen=True)
class Choice:
    """What a policy chose: the encoding used, and the reason where it is a fallback."""

    wanted: str
    encoding: Encoding
    reason: str | None


def find_policy(policies: Sequence[Policy], quant: str, *, target: str) -> Policy:
    """The policy of that name, whatever its case.

    Raises: UsageError listing the target's quants.
    """
    for policy in policies:
        if policy.name.lower() == quant.lower():
            return policy
    names = ", ".join(policy.name for policy in policies)
    raise UsageError(f"unknown quant '{quant}' for target {target}: expected one of {names}")
