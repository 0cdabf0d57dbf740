"""Phi-3 and Phi-4-mini: Llama's layers with fused projections, a rope of a part of each head, and another for long texts.

Source: transformers `configuration_phi3.py`, `modeling_phi3.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..blocks import Branches
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, Places, RopeTables, ServerNames
from .places import Part
from .reading import read_n_layers, read_norm

_QKV, _GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
_HEADS, _GATED = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V), (Role.FFN_GATE, Role.FFN_UP)
_PLACES: Places = {
    **{
        role: [Part(name, decoder.LAYER_PLACES[role][0].name, role, roles)]
        for name, roles in ((_QKV, _HEADS), (_GATE_UP, _GATED))
        for role in roles
    },
}
# Phi-3's converter in llama.cpp says less than others, and in another order.
_GGUF_KEYS = (
    "context_length", "rope.scaling.original_context_length", "embedding_length", "feed_forward_length", "block_count",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.dimension_count",
    "rope.freq_base", "general.file_type", "attention.sliding_window",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {**decoder.DEFAULTS, "norm_eps": 1e-5, "original_max_position_embeddings": 4096}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    """A window that holds the whole context is none: Phi-4-mini names one."""
    attention = decoder.read_attention(read)
    window = read.value("sliding_window")
    if window is not None:
        window = read.checked("sliding_window", window, int)
        is_whole = window >= read.number("max_position_embeddings", int)
        attention = replace(attention, window=None if is_whole else window)
    return (decoder.layer(attention, decoder.read_dense(read), read_norm(read)),) * read_n_layers(read)


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    """With the rope as Phi's own class of transformers 4 wants it: three keys in one table, and the rest beside it."""
    attention = next(iter(config.mixers))
    common = decoder.common_fields(config)
    settings = common.pop("rope_parameters")
    scaling = common.pop("rope_scaling", {})
    is_long = settings["rope_type"] == "longrope"
    keys = ("short_factor", "long_factor")
    own = {"type": "longrope", **{key: scaling[key] for key in keys}} if is_long else None
    return {
        **common,
        "rope_scaling": own,
        "rope_parameters": None if is_long else settings,
        "partial_rotary_factor": settings.get("partial_rotary_factor", 1.0),
        "original_max_position_embeddings": settings.get("original_max_position_embeddings"),
        "sliding_window": getattr(attention, "window", None),
    }


def _gguf_says(config: ModelConfig) -> dict[str, int]:
    """The window as the config has it, which llama.cpp does not look at; 0 for none."""
    return {"attention.sliding_window": config.raw.get("sliding_window") or 0}


def _mlx_fields(config: ModelConfig) -> dict[str, Any]:
    """A linear rope under the key by which mlx-lm knows a rope's type here."""
    scaling = decoder.rope_fields(config).get("rope_scaling", {})
    if scaling.get("rope_type") != "linear":
        return {}
    return {"rope_scaling": {"type": "linear", "factor": float(scaling["factor"])}}


FAMILY = Family(
    name="Phi-3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    aliases=decoder.ALIASES,
    defaults=_DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=decoder.TOP_PLACES,
    layer_places={**decoder.LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="phi3",
        tensors={**dict.fromkeys(_HEADS, "attn_qkv.weight"), **dict.fromkeys(_GATED, "ffn_up.weight")},
        has_partial_ropes=True,
        rope_tables=RopeTables.BY_LENGTH,
        keys=_GGUF_KEYS,
        has_usual_keys=False,
        early_keys=("rope.scaling.attn_factor",),
        has_head_size=False,
        says=_gguf_says,
    ),
    mlx=MlxNames(can=decoder.MLX_CAN | {MlxCan.PART_TURNS}, ropes={"linear", "longrope"}, fields=_mlx_fields),
    servers=ServerNames(),
)
