"""What mlx-lm calls each weight of an LFM2 model: the checkpoint's name, but for the feed-forward of its MoE class.

Source: mlx-lm `mlx_lm/models/lfm2.py`, `mlx_lm/models/lfm2_moe.py` (`sanitize`).
"""

from __future__ import annotations

from ...convert.model.graph import Role
from ...convert.model.lfm2 import checkpoint_name, layer_prefix

# lfm2_moe stacks the experts, and renames the matrices of its dense layers too.
_MOE_NAMES = {
    Role.FFN_GATE: "feed_forward.gate_proj.weight",
    Role.FFN_UP: "feed_forward.up_proj.weight",
    Role.FFN_DOWN: "feed_forward.down_proj.weight",
    Role.EXPERT_GATE: "feed_forward.switch_mlp.gate_proj.weight",
    Role.EXPERT_UP: "feed_forward.switch_mlp.up_proj.weight",
    Role.EXPERT_DOWN: "feed_forward.switch_mlp.down_proj.weight",
}


def parameter_name(role: Role, layer: int | None, *, is_moe: bool) -> str:
    """`model.layers.3.self_attn.q_proj.weight`."""
    if is_moe and layer is not None and role in _MOE_NAMES:
        return layer_prefix(layer) + _MOE_NAMES[role]
    return checkpoint_name(role, layer)


def module_path(parameter: str) -> str:
    """The module a parameter belongs to: what quantization settings are listed under."""
    return parameter.rpartition(".")[0]
