"""Quants of the ONNX target, by the names Transformers.js gives them (its `dtype`), and a mixed one.

Norms, conv kernels and biases stay float; the router and its bias stay float32 in every quant, since a
rounded router sends tokens to other experts.
"""

from __future__ import annotations

from ...graph.roles import EXPERTS, Role, Trait, of_trait
from ..policy import Policy, Rule

_ROUTING = of_trait(Trait.ROUTER) | {Role.EXPERT_BIAS}
_MATRICES = of_trait(Trait.TABLE, Trait.HEAD, Trait.MATRIX, Trait.EXPERTS)
_FFN = EXPERTS | {Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN}
# What every token goes through; in a mixture of experts, a small share of the bytes.
_SENSITIVE = _MATRICES - _FFN

FLOATS = ("fp32", "fp16")
# The quant that one which fills a size has all else from.
AUTO_BASE = "q4f16"
# What matrices may be allotted: blocks whose scales are in the type of the activations, or that type itself.
MIXABLE = (
    ("int4_block32_f32", "int8_block32_f32", "F32"),
    ("int4_block32_f16", "int8_block32_f16", "F16"),
)

POLICIES: tuple[Policy, ...] = (
    Policy(name="fp32", class_name="f32", rules=(Rule("F32"),)),
    Policy(name="fp16", class_name="f16", rules=(Rule("F32", _ROUTING), Rule("F16"))),
    Policy(
        name="q8",
        class_name="q8",
        rules=(Rule("int8_block32_f32", _MATRICES), Rule("F32")),
        fallbacks={"int8_block32_f32": "F32"},
    ),
    Policy(
        name="q4",
        class_name="q4",
        rules=(Rule("int4_block32_f32", _MATRICES), Rule("F32")),
        fallbacks={"int4_block32_f32": "F32"},
    ),
    Policy(
        name="q4_mixed",
        class_name="q4",
        rules=(Rule("int8_block32_f32", _SENSITIVE), Rule("int4_block32_f32", _FFN), Rule("F32")),
        fallbacks={"int8_block32_f32": "F32", "int4_block32_f32": "F32"},
    ),
    Policy(
        name="q4f16",
        class_name="q4",
        rules=(Rule("int4_block32_f16", _MATRICES), Rule("F32", _ROUTING), Rule("F16")),
        fallbacks={"int4_block32_f16": "F16"},
    ),
)
