"""Granite 4 without Mamba layers and without experts: Granite's layers, whose feed-forward is the shared one, and which may have no rope.

Source: transformers `configuration_granitemoehybrid.py`, `modeling_granitemoehybrid.py`.
"""

from __future__ import annotations

from typing import Any

from ..blocks import Branches, Dense
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder, granite
from .family import Family, GgufNames, MlxCan, MlxNames, Places, ServerNames
from .places import Part, Place
from .reading import read_n_layers, read_norm

_ATTENTION = ("attention", decoder.FULL)
_MAMBA = ("mamba", "linear_attention")
_BOTH = "shared_mlp.input_linear.weight"
_GATED = Role.FFN_GATE, Role.FFN_UP
_PLACES: Places = {
    Role.FFN_GATE: [Part(_BOTH, "shared_mlp.gate.weight", Role.FFN_GATE, _GATED)],
    Role.FFN_UP: [Part(_BOTH, "shared_mlp.up.weight", Role.FFN_UP, _GATED)],
    Role.FFN_DOWN: [Place("shared_mlp.output_linear.weight")],
}

# What llama.cpp's converter copies from a config, though models without Mamba have no use for it.
_GGUF_COPIED = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_feed_forward_length": "shared_intermediate_size",
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.inner_size": "mamba_expand",
    "ssm.time_step_rank": "mamba_n_heads",
}
_MLX_TENSORS = {
    Role.FFN_GATE: "mlp.gate_proj.weight",
    Role.FFN_UP: "mlp.up_proj.weight",
    Role.FFN_DOWN: "mlp.down_proj.weight",
}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    _refuse_mamba(read)
    if read.number("num_local_experts", int, 8, least=0):
        read.faults.add(
            "num_local_experts is not 0: a shared expert beside a mixture needs its block in graph/blocks.py"
        )
    other: dict[str, Any] = {} if read.value("position_embedding_type") == "rope" else {"rope": None}
    layer = decoder.layer(
        granite.read_attention(read, **other),
        decoder.read_dense(read, "shared_intermediate_size"),
        read_norm(read),
        scale=granite.multiplier(read, "residual_multiplier"),
    )
    return (layer,) * read_n_layers(read)


def _refuse_mamba(read: Fields) -> None:
    names = read.items("layer_types", str)
    found = names is None or any(name in _MAMBA for name in names)
    if found:
        read.faults.add("layer_types holds Mamba-2 layers: they need their block in graph/blocks.py")
    elif names is not None:
        decoder.read_layer_types(read, [decoder.FULL] * read_n_layers(read), _ATTENTION)


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    dense = config.shared(Dense)
    return {
        **granite.hub_fields(config),
        "shared_intermediate_size": dense and dense.size,
        "num_local_experts": 0,
        "position_embedding_type": "rope" if config.ropes else "nope",
        # the spelling that Transformers.js and mlx-lm read
        "layer_types": ["attention"] * config.n_layers,
    }


def _gguf_says(config: ModelConfig) -> dict[str, int]:
    found = {key: config.raw[name] for key, name in _GGUF_COPIED.items() if isinstance(config.raw.get(name), int)}
    if "ssm.inner_size" in found:
        found["ssm.inner_size"] *= config.hidden_size
    return {**found, "rope.scaling.finetuned": bool(config.ropes)}


FAMILY = Family(
    name="Granite 4",
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    aliases={**decoder.ALIASES, "layer_types": ("layers_block_type",)},
    defaults=decoder.DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    read_scales=granite.read_scales,
    top_places=decoder.TOP_PLACES,
    layer_places={**decoder.LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(
        **{**granite.GGUF, "keys": (*granite.GGUF["keys"], *_GGUF_COPIED)},
        architecture="granite",
        lists_heads=True,
        says=_gguf_says,
    ),
    mlx=MlxNames(tensors=_MLX_TENSORS, can=granite.MLX_CAN | {MlxCan.NO_ROPE}),
    servers=ServerNames(),
)
