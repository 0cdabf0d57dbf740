"""Granite 3 as a mixture of experts: Granite's multipliers, and a softmax over the chosen experts.

Source: transformers `configuration_granitemoe.py`, `modeling_granitemoe.py`.
"""

from __future__ import annotations

from typing import Any

from ..blocks import Branches, Mixture, Scoring
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder, granite
from .family import Family, GgufNames, MlxCan, MlxNames, OnnxNames, Places, ServerNames
from .places import Part, Place
from .reading import check_chosen, read_n_layers, read_norm

_SCOPE = "block_sparse_moe."
_STACKED = Role.EXPERT_GATE, Role.EXPERT_UP


def _both(role: Role, name: str) -> list[Place]:
    """Gate and up in one tensor, as checkpoints have it and as transformers 5 holds it in memory."""
    return [
        Part(_SCOPE + stack, f"{_SCOPE}experts.{name}.weight", role, _STACKED)
        for stack in ("input_linear.weight", "experts.gate_up_proj")
    ]


_PLACES: Places = {
    Role.ROUTER: [Place(_SCOPE + "router.layer.weight"), Place(_SCOPE + "router.weight")],
    Role.EXPERT_GATE: _both(Role.EXPERT_GATE, "gate"),
    Role.EXPERT_UP: _both(Role.EXPERT_UP, "up"),
    Role.EXPERT_DOWN: [Place(_SCOPE + "output_linear.weight"), Place(_SCOPE + "experts.down_proj")],
}
_MLX_TENSORS = {
    Role.EXPERT_GATE: _SCOPE + "switch_mlp.gate_proj.weight",
    Role.EXPERT_UP: _SCOPE + "switch_mlp.up_proj.weight",
    Role.EXPERT_DOWN: _SCOPE + "switch_mlp.down_proj.weight",
}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    decoder.read_activation(read)
    mixture = Mixture(
        n_experts=read.number("num_local_experts", int, 8),
        top_k=read.number("num_experts_per_tok", int, 2),
        size=read.number("intermediate_size", int),
        scoring=Scoring.SOFTMAX,
        has_bias=False,
        sum_eps=0.0,
    )
    scale = granite.multiplier(read, "residual_multiplier")
    check_chosen(read, mixture, "num_local_experts")
    layer = decoder.layer(granite.read_attention(read), mixture, read_norm(read), scale=scale)
    return (layer,) * read_n_layers(read)


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    mixture = config.shared(Mixture)
    if mixture is None:
        raise ValueError("a model of this family has experts")
    return {
        **granite.hub_fields(config),
        "hidden_act": "silu",
        "intermediate_size": mixture.size,
        "num_local_experts": mixture.n_experts,
        "num_experts_per_tok": mixture.top_k,
    }


FAMILY = Family(
    name="Granite-MoE",
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    aliases=decoder.ALIASES,
    defaults=decoder.DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    read_scales=granite.read_scales,
    top_places=decoder.TOP_PLACES,
    layer_places={**decoder.LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(architecture="granitemoe", scoring=Scoring.SOFTMAX, **granite.GGUF),
    mlx=MlxNames(
        tensors=_MLX_TENSORS,
        can=granite.MLX_CAN | {MlxCan.MIXTURES},
        ropes=decoder.MLX_ROPES,
        wide={Role.ROUTER, Role.ATTN_OUT, Role.EXPERT_DOWN, Role.LM_HEAD},
    ),
    onnx=OnnxNames(model_type="granite"),
    servers=ServerNames(),
)
