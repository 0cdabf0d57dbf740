"""Quants of the ExecuTorch target, by the names torchao and `export_llm` give them.

`8da4w` is 8-bit dynamic activations with 4-bit weights in groups of 32, `-g64` and `-g128` are larger groups, `8da8w`
has 8-bit weights by row. The embedding table is looked up, not multiplied, so it has an encoding of its own and a tied model stores
it twice, here in 4 bits and groups of 32, or with `-emb8` in 8 bits by row. Norms, conv kernels, biases and the router stay float32.
"""

from __future__ import annotations

from ...convert.model.graph import EXPERTS, Role
from ..policy import Policy, Rule

_EMBED = frozenset({Role.EMBED})
MATRICES = EXPERTS | {
    Role.LM_HEAD, Role.CONV_IN, Role.CONV_OUT, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUT,
    Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN,
}  # fmt: skip
# For rows that a group size does not divide: smaller groups, then a scale a row.
_FALLBACKS = {
    "et_int4_g128": "et_int4_g64", "et_int4_g64": "et_int4_g32", "et_int4_g32": "et_int8",
    "et_embed4_g32": "et_embed8",
}  # fmt: skip


def _policy(name: str, class_name: str, matrices: str, embed: str) -> Policy:
    return Policy(
        name=name,
        class_name=class_name,
        rules=(Rule(embed, _EMBED), Rule(matrices, frozenset(MATRICES)), Rule("F32")),
        fallbacks=_FALLBACKS,
    )


POLICIES: tuple[Policy, ...] = (
    Policy(name="fp32", class_name="f32", rules=(Rule("F32"),)),
    _policy("8da8w", "q8", "et_int8", "et_embed8"),
    *(
        _policy(f"8da4w{group}{suffix}", "q4", f"et_int4_{group[1:] or 'g32'}", embed)
        for group in ("", "-g64", "-g128")
        for suffix, embed in (("", "et_embed4_g32"), ("-emb8", "et_embed8"))
    ),
)
