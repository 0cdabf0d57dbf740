"""Quants of the MLX target, by the names mlx-community gives its folders.

Group size is 64, or what the ending says. The router is 8-bit in groups of 64 whatever the rest is; norms,
biases and conv kernels stay in the checkpoint's float type, and so do rows that a group does not divide.
Source: mlx-lm `mlx_lm/models/lfm2_moe.py`, `quant_predicate`, `cast_predicate`.
"""

from __future__ import annotations

from functools import cache

from ...convert.model.dtypes import DType
from ...convert.model.graph import EXPERTS, Role
from ..policy import Policy, Rule

# mlx-lm's own mixed recipes fail on dense LFM2 and narrow the router; this one is by role.
MIXED = "mixed_4_8"

_FFN = EXPERTS | {Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN}
_SENSITIVE = frozenset({Role.EMBED, Role.CONV_IN, Role.CONV_OUT, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUT})
_BYTE = "affine8_g64"

# Quant -> class and encoding of the matrices, without the float type it ends with.
_QUANTS = {
    **{f"{bits}bit": (f"q{bits}", f"affine{bits}_g64") for bits in (8, 6, 5, 4, 3)},
    MIXED: ("q4", "affine4_g64"),
    **{
        f"{bits}bit-g{group}": (f"q{bits}", f"affine{bits}_g{group}") for bits in (8, 6, 5, 4, 3) for group in (32, 128)
    },
    "mxfp8": ("q5", "mxfp8"),  # eight bits, of which three are mantissa
    "mxfp4": ("q4", "mxfp4"),
    "nvfp4": ("q4", "nvfp4"),
}


def matrix_encoding(quant: str) -> str | None:
    """What most matrices of a quant are stored as, for weights in bfloat16; None for plain floats."""
    return _QUANTS[quant][1] + "_bf16" if quant in _QUANTS else None


@cache
def mlx_policy(quant: str, dtype: DType, *, refined: bool = False) -> Policy:
    """The policy of a quant for weights that come in `dtype`: MLX keeps scales and floats in that type."""
    floats = dtype.value
    if quant not in _QUANTS:
        return Policy(name=quant, class_name="f16", rules=(Rule(floats),))
    class_name, stem = _QUANTS[quant]
    ending = f"_{floats.lower()}" + ("_refined" if refined else "")
    byte, matrices = _BYTE + ending, stem + ending
    sensitive = (Rule(byte, _SENSITIVE),) if quant == MIXED else ()
    rules = (Rule(byte, frozenset({Role.ROUTER})), *sensitive, Rule(matrices, _SENSITIVE | _FFN), Rule(floats))
    return Policy(name=quant, class_name=class_name, rules=rules, fallbacks={byte: floats, matrices: floats})


POLICIES: tuple[Policy, ...] = tuple(mlx_policy(quant, DType.BF16) for quant in (*_QUANTS, "bf16"))
