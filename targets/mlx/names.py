"""What mlx-lm calls each weight of an LFM2 model.

Source: mlx-lm `mlx_lm/models/lfm2.py`, `mlx_lm/models/lfm2_moe.py` (`sanitize`).
"""

from __future__ import annotations

from ...convert.model.graph import Role

_NAMES = {
    Role.EMBED: "model.embed_tokens.weight",
    Role.FINAL_NORM: "model.embedding_norm.weight",
    Role.OPERATOR_NORM: "operator_norm.weight",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.CONV_IN: "conv.in_proj.weight",
    Role.CONV_IN_BIAS: "conv.in_proj.bias",
    Role.CONV_KERNEL: "conv.conv.weight",
    Role.CONV_KERNEL_BIAS: "conv.conv.bias",
    Role.CONV_OUT: "conv.out_proj.weight",
    Role.CONV_OUT_BIAS: "conv.out_proj.bias",
    Role.ATTN_Q: "self_attn.q_proj.weight",
    Role.ATTN_K: "self_attn.k_proj.weight",
    Role.ATTN_V: "self_attn.v_proj.weight",
    Role.ATTN_OUT: "self_attn.out_proj.weight",
    Role.Q_NORM: "self_attn.q_layernorm.weight",
    Role.K_NORM: "self_attn.k_layernorm.weight",
    Role.FFN_GATE: "feed_forward.w1.weight",
    Role.FFN_UP: "feed_forward.w3.weight",
    Role.FFN_DOWN: "feed_forward.w2.weight",
    Role.ROUTER: "feed_forward.gate.weight",
    Role.EXPERT_BIAS: "feed_forward.expert_bias",
    Role.EXPERT_GATE: "feed_forward.switch_mlp.gate_proj.weight",
    Role.EXPERT_UP: "feed_forward.switch_mlp.up_proj.weight",
    Role.EXPERT_DOWN: "feed_forward.switch_mlp.down_proj.weight",
}
# lfm2_moe renames the dense layers' matrices too.
_MOE_NAMES = {
    **_NAMES,
    Role.FFN_GATE: "feed_forward.gate_proj.weight",
    Role.FFN_UP: "feed_forward.up_proj.weight",
    Role.FFN_DOWN: "feed_forward.down_proj.weight",
}


def parameter_name(role: Role, layer: int | None, *, is_moe: bool) -> str:
    """`model.layers.3.self_attn.q_proj.weight`."""
    name = (_MOE_NAMES if is_moe else _NAMES)[role]
    return name if layer is None else f"model.layers.{layer}.{name}"


def module_path(parameter: str) -> str:
    """The module a parameter belongs to: what quantization settings are listed under."""
    return parameter.rpartition(".")[0]
