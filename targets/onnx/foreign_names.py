"""Which weight a name in an ONNX graph of any writer tells, and of which layer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...graph.roles import Role

NameTable = tuple[tuple[re.Pattern[str], Role | str], ...]


def _patterns(*rows: tuple[str, Role | str]) -> NameTable:
    return tuple((re.compile(pattern), role) for pattern, role in rows)


_LAYER = re.compile(r"layers[._](\d{1,4})\D")
EXPERT = re.compile(r"experts[._](\d{1,4})\D")
# What tells a role, in what follows the number of a layer, of a node's name or an initializer's; first match wins.
QKV, GATE_UP = "qkv", "gate_up"
_IN_LAYER = _patterns(
    (r"final_norm|embedding_norm", Role.FINAL_NORM),
    (r"q_norm|q_layernorm", Role.Q_NORM),
    (r"k_norm|k_layernorm", Role.K_NORM),
    (r"operator_(layer)?norm|input_layernorm|op_norm", Role.OPERATOR_NORM),
    (r"ffn_(layer)?norm|post_attention_layernorm", Role.FFN_NORM),
    (r"expert_bias", Role.EXPERT_BIAS),
    (r"router|(feed_forward|moe)[._/]gate(?!_proj|_up)", Role.ROUTER),
    (r"qkv_proj", QKV),
    (r"attn.*q_proj", Role.ATTN_Q),
    (r"attn.*k_proj", Role.ATTN_K),
    (r"attn.*v_proj", Role.ATTN_V),
    (r"attn.*(o_proj|out_proj)", Role.ATTN_OUT),
    (r"in_proj", Role.CONV_IN),
    (r"out_proj", Role.CONV_OUT),
    (r"gate_up_proj", GATE_UP),
    (r"gate_proj|[._/]w1[._/]", Role.FFN_GATE),
    (r"up_proj|[._/]w3[._/]", Role.FFN_UP),
    (r"down_proj|[._/]w2[._/]", Role.FFN_DOWN),
    (r"conv", Role.CONV_KERNEL),
)
# The same where layers have norms on both sides: there the norm after attention is not that before the feed-forward.
_BETWEEN_NORMS = (
    *_patterns(
        (r"pre_feedforward_layernorm", Role.FFN_NORM),
        (r"post_feedforward_layernorm", Role.POST_FFN_NORM),
        (r"post_attention_layernorm", Role.POST_OPERATOR_NORM),
    ),
    *_IN_LAYER,
)
# What is added to the product with a matrix.
BIASES = {
    Role.CONV_IN: Role.CONV_IN_BIAS, Role.CONV_OUT: Role.CONV_OUT_BIAS, Role.ATTN_Q: Role.ATTN_Q_BIAS,
    Role.ATTN_K: Role.ATTN_K_BIAS, Role.ATTN_V: Role.ATTN_V_BIAS, Role.ATTN_OUT: Role.ATTN_OUT_BIAS,
}  # fmt: skip


def table_of(names: Iterable[str]) -> NameTable:
    """The table for a graph with these names."""
    return _BETWEEN_NORMS if any("pre_feedforward_layernorm" in name for name in names) else _IN_LAYER


def role_of(names: Iterable[str], table: NameTable) -> tuple[Role | str, int | None] | None:
    """The role and the layer that the first telling name tells; a role that is a text is of several weights in one."""
    for text in (f"{name}/" for name in names if name):
        found = _LAYER.search(text)
        inside = text[found.end() - 1 :] if found else text
        for pattern, role in table:
            if pattern.search(inside) is None:
                continue
            if role is Role.FINAL_NORM:
                return role, None
            if found is not None:
                return role, int(found[1])
    return None


def layer_of(text: str) -> int | None:
    """The layer that a name tells."""
    found = _LAYER.search(f"{text}/")
    return int(found[1]) if found else None
