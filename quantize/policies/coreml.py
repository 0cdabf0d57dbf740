"""Quants of the Core ML target. What is multiplied by activations is stored in fewer bits, and computed in float16.

Conv kernels and biases stay float16, norms, the router and its bias float32, in every quant. The token table, which is
also the head of most models, has 8 bits in all but fp16, and so have the few rows that gate heads.
"""

from __future__ import annotations

from ...graph.roles import NORMS, Role, Trait, of_trait
from ..policy import Policy, Rule

_EXACT = NORMS | of_trait(Trait.ROUTER) | {Role.EXPERT_BIAS}
_TABLES = of_trait(Trait.TABLE, Trait.HEAD) | {Role.ATTN_GATE}
_MATRICES = of_trait(Trait.MATRIX, Trait.EXPERTS)
_FALLBACKS = {"coreml_int4": "coreml_int8", "coreml_pal4": "coreml_int8"}


def _integers(name: str, class_name: str, matrices: str) -> Policy:
    rules = (Rule("coreml_int8", _TABLES), Rule(matrices, _MATRICES), Rule("F32", _EXACT), Rule("F16"))
    return Policy(name=name, class_name=class_name, rules=rules, fallbacks=_FALLBACKS)


# What a matrix may be allotted that a quant stores in codes; tables of values only where the quant has them.
MIXABLE = ("coreml_int4", "coreml_int8", "F16")
_PALETTE = "coreml_pal4"


def mixable(encoding: str) -> tuple[str, ...]:
    """What a matrix may be allotted in place of an encoding; nothing of floats."""
    if encoding not in (*MIXABLE[:2], _PALETTE):
        return ()
    return (_PALETTE, *MIXABLE) if encoding == _PALETTE else MIXABLE


POLICIES: tuple[Policy, ...] = (
    _integers("int4", "q4", "coreml_int4"),
    _integers("int4-pal", "q4", "coreml_pal4"),
    _integers("int8", "q8", "coreml_int8"),
    Policy(name="fp16", class_name="f16", rules=(Rule("F32", _EXACT), Rule("F16"))),
)
