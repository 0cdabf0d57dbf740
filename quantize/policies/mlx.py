"""Quants of the MLX target, by the names mlx-community gives its folders.

Group size is 64, or what the ending says; `-e6` and `-e8` widen the embedding. The
router is 8-bit in groups of 64 whatever the rest is; norms, biases and conv kernels stay in the checkpoint's
float type, and so do rows that a group does not divide.
Source: mlx-lm `mlx_lm/models/lfm2_moe.py`, `quant_predicate`, `cast_predicate`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ...convert.model.dtypes import DType
from ...convert.model.graph import EXPERTS, Role
from ..policy import Policy, Rule

_BYTE = "affine8_g64"
_BITS = (8, 6, 5, 4, 3)
_EMBEDDING = frozenset({Role.EMBED})
# The roles whose widening lowers the divergence most a byte (docs/mlx.md); the embedding is also the head.
# mlx-lm's own mixed recipes fail on dense LFM2, and narrow the router.
_SENSITIVE = _EMBEDDING | {Role.CONV_OUT, Role.ATTN_K, Role.ATTN_V}
_MATRICES = EXPERTS | _SENSITIVE | {
    Role.CONV_IN, Role.ATTN_Q, Role.ATTN_OUT, Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN,
}  # fmt: skip


class _Quant(NamedTuple):
    """Encodings by the stem of their names: the ending is the checkpoint's float type."""

    class_name: str
    matrices: str
    wider: str = _BYTE
    wider_roles: frozenset[Role] = frozenset()


_QUANTS = {
    **{f"{bits}bit": _Quant(f"q{bits}", f"affine{bits}_g64") for bits in _BITS},
    "mixed_4_8": _Quant("q4", "affine4_g64", _BYTE, _SENSITIVE),
    "4bit-e6": _Quant("q4", "affine4_g64", "affine6_g64", _EMBEDDING),
    **{f"{bits}bit-g{group}": _Quant(f"q{bits}", f"affine{bits}_g{group}") for bits in _BITS for group in (32, 128)},
    "mxfp8": _Quant("q5", "mxfp8"),  # eight bits, of which three are mantissa
    "mxfp4": _Quant("q4", "mxfp4"),
    "mxfp4-e8": _Quant("q4", "mxfp4", _BYTE, _EMBEDDING),
    "nvfp4": _Quant("q4", "nvfp4"),
}
_FLOAT_QUANT = "bf16"


def matrix_encoding(quant: str) -> str | None:
    """What most matrices of a quant are stored as, for weights in bfloat16; None for plain floats."""
    return None if quant == _FLOAT_QUANT else _QUANTS[quant].matrices + "_bf16"


@cache
def mlx_policy(quant: str, dtype: DType, *, refined: bool = False) -> Policy:
    """The policy of a quant for weights that come in `dtype`: MLX keeps scales and floats in that type."""
    floats = dtype.value
    if quant == _FLOAT_QUANT:
        return Policy(name=quant, class_name="f16", rules=(Rule(floats),))
    found = _QUANTS[quant]
    ending = f"_{floats.lower()}" + ("_refined" if refined else "")
    rules = (
        Rule(_BYTE + ending, frozenset({Role.ROUTER})),
        Rule(found.wider + ending, found.wider_roles),
        Rule(found.matrices + ending, _MATRICES),
        Rule(floats),
    )
    fallbacks = {rule.encoding: floats for rule in rules[:-1]}
    return Policy(name=quant, class_name=found.class_name, rules=rules, fallbacks=fallbacks)


POLICIES: tuple[Policy, ...] = tuple(mlx_policy(quant, DType.BF16) for quant in (*_QUANTS, _FLOAT_QUANT))
