"""What a weight does in a model, and of what kind it therefore is."""

from __future__ import annotations

import enum


class Trait(enum.Enum):
    """What policies and targets ask of a role: a new role has one of these, and no table changes."""

    TABLE = "table"  # rows that are looked up: the token embedding
    HEAD = "head"  # the matrix that gives the logits
    MATRIX = "matrix"  # multiplied with the activations of every token
    EXPERTS = "experts"  # a stack of matrices, of which a token meets a few
    ROUTER = "router"  # the matrix that chooses among experts
    NORM = "norm"  # gains
    BIAS = "bias"  # added
    KERNEL = "kernel"  # taps of a depthwise convolution


class Role(enum.Enum):
    """What a weight does. Policies and layouts speak in roles and their traits, never in name patterns.

    Shapes: with H hidden, V vocabulary, K conv width, Q/KV attention sizes, N heads, D head size, F/M dense and expert
    feed-forward sizes, E experts.
    """

    trait: Trait

    EMBED = "embed", Trait.TABLE  # [V, H]
    FINAL_NORM = "final_norm", Trait.NORM  # [H]
    LM_HEAD = "lm_head", Trait.HEAD  # [V, H], absent when tied
    PROJECTION = "projection", Trait.MATRIX  # [P, H], of a model that gives vectors
    OPERATOR_NORM = "operator_norm", Trait.NORM  # [H]
    POST_OPERATOR_NORM = "post_operator_norm", Trait.NORM  # [H], of what the mixer gives
    FFN_NORM = "ffn_norm", Trait.NORM  # [H]
    POST_FFN_NORM = "post_ffn_norm", Trait.NORM  # [H], of what the feed-forward gives
    CONV_IN = "conv_in", Trait.MATRIX  # [3H, H], rows are B, C, x
    CONV_IN_BIAS = "conv_in_bias", Trait.BIAS  # [3H]
    CONV_KERNEL = "conv_kernel", Trait.KERNEL  # [H, K], oldest tap first
    CONV_KERNEL_BIAS = "conv_kernel_bias", Trait.BIAS  # [H]
    CONV_OUT = "conv_out", Trait.MATRIX  # [H, H]
    CONV_OUT_BIAS = "conv_out_bias", Trait.BIAS  # [H]
    ATTN_Q = "attn_q", Trait.MATRIX  # [Q, H]
    ATTN_K = "attn_k", Trait.MATRIX  # [KV, H]
    ATTN_V = "attn_v", Trait.MATRIX  # [KV, H]
    ATTN_Q_BIAS = "attn_q_bias", Trait.BIAS  # [Q]
    ATTN_K_BIAS = "attn_k_bias", Trait.BIAS  # [KV]
    ATTN_V_BIAS = "attn_v_bias", Trait.BIAS  # [KV]
    ATTN_OUT_BIAS = "attn_out_bias", Trait.BIAS  # [H]
    ATTN_GATE = "attn_gate", Trait.MATRIX  # [N, H], one number a head
    ATTN_OUT = "attn_out", Trait.MATRIX  # [H, Q]
    Q_NORM = "q_norm", Trait.NORM  # [D]
    K_NORM = "k_norm", Trait.NORM  # [D]
    FFN_GATE = "ffn_gate", Trait.MATRIX  # [F, H], w1
    FFN_UP = "ffn_up", Trait.MATRIX  # [F, H], w3
    FFN_DOWN = "ffn_down", Trait.MATRIX  # [H, F], w2
    ROUTER = "router", Trait.ROUTER  # [E, H]
    EXPERT_BIAS = "expert_bias", Trait.BIAS  # [E]
    EXPERT_GATE = "expert_gate", Trait.EXPERTS  # [E, M, H]
    EXPERT_UP = "expert_up", Trait.EXPERTS  # [E, M, H]
    EXPERT_DOWN = "expert_down", Trait.EXPERTS  # [E, H, M]

    def __new__(cls, value: str, trait: Trait) -> Role:
        role = object.__new__(cls)
        role._value_ = value
        role.trait = trait
        return role


# The address of a weight: its role, and its layer (None outside the layers).
Address = tuple[Role, int | None]


def find_role(name: str) -> Role:
    """The role that is spelled so. Raises: ValueError."""
    found = next((role for role in Role if role.value == name), None)
    if found is None:
        raise ValueError(f"unknown role '{name}'")
    return found


def of_trait(*traits: Trait) -> frozenset[Role]:
    """All roles of some kinds."""
    return frozenset(role for role in Role if role.trait in traits)


MATRICES = of_trait(Trait.MATRIX, Trait.EXPERTS, Trait.HEAD)
EXPERTS = of_trait(Trait.EXPERTS)
NORMS = of_trait(Trait.NORM)
BIASES = of_trait(Trait.BIAS)
