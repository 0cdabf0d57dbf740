"""Granite 3, dense: Llama's layers with four multipliers: of embeddings, of scores, of branches and of logits.

Source: transformers `configuration_granite.py`, `modeling_granite.py`.
"""

from __future__ import annotations

from typing import Any

from ..blocks import Attention, Branches
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, RopeTables, Scales, ServerNames
from .reading import read_n_layers, read_norm

# What llama.cpp's graph of all Granites knows, and its converter says.
GGUF: dict[str, Any] = {
    "takes": decoder.BIASES,
    "pairs_neighbours": True,
    "may_stand": True,
    "rope_tables": RopeTables.TAKEN,
    "has_scales": True,
    "keys": (
        *decoder.GGUF_KEYS, "attention.scale", "embedding_scale", "residual_scale", "logit_scale",
        "rope.scaling.finetuned",
    ),
    "has_head_size": False,
}  # fmt: skip
MLX_CAN = decoder.MLX_CAN | {MlxCan.BIASES, MlxCan.SCORE_SCALE, MlxCan.SCALES}


def multiplier(read: Fields, key: str) -> float:
    return float(read.number(key, float, 1.0, least=1e-9))


def read_attention(read: Fields, **other: Any) -> Attention:
    return decoder.read_attention(read, score_scale=multiplier(read, "attention_multiplier"), **other)


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    scale = multiplier(read, "residual_multiplier")
    layer = decoder.layer(read_attention(read), decoder.read_dense(read), read_norm(read), scale=scale)
    return (layer,) * read_n_layers(read)


def read_scales(read: Fields) -> Scales:
    return Scales(embedding=multiplier(read, "embedding_multiplier"), logits=1 / multiplier(read, "logits_scaling"))


def hub_fields(config: ModelConfig) -> dict[str, Any]:
    attention = config.first(Attention)
    return {
        **decoder.common_fields(config),
        "embedding_multiplier": config.embedding_scale,
        "attention_multiplier": attention and attention.scale,
        "residual_multiplier": config.layers[0][0].scale,
        "logits_scaling": 1 / config.logit_scale,
    }


FAMILY = Family(
    name="Granite",
    model_type="granite",
    architecture="GraniteForCausalLM",
    aliases=decoder.ALIASES,
    defaults=decoder.DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    read_scales=read_scales,
    top_places=decoder.TOP_PLACES,
    layer_places=decoder.LAYER_PLACES,
    hub_fields=hub_fields,
    gguf=GgufNames(architecture="granite", **GGUF),
    mlx=MlxNames(
        can=MLX_CAN,
        ropes=decoder.MLX_ROPES,
        wide={Role.ATTN_OUT, Role.FFN_DOWN, Role.LM_HEAD},
        fields=lambda config: {"mlp_bias": False},
    ),
    servers=ServerNames(),
)
