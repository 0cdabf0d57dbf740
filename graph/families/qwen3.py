"""Qwen3, dense: queries and keys are normed, and heads may together be of another size than the hidden state.

Source: transformers `configuration_qwen3.py`, `modeling_qwen3.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..blocks import Attention, Branches
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, ServerNames
from .reading import read_n_layers, read_norm

DEFAULTS: dict[str, Any] = {**decoder.DEFAULTS, "head_dim": 128}


def read_attentions(read: Fields) -> list[Attention]:
    """The attention of each layer: with `use_sliding_window`, those from `max_window_layers` on see a window."""
    n_layers, norm = read_n_layers(read), read_norm(read)
    whole = decoder.read_attention(read, qk_norm=norm)
    windowed = whole
    n_whole = n_layers
    if read.flag("use_sliding_window", False):
        windowed = replace(whole, window=read.number("sliding_window", int))
        n_whole = read.number("max_window_layers", int, 28, least=0)
    kinds = [decoder.FULL if i < n_whole else decoder.SLIDING for i in range(n_layers)]
    return [windowed if kind == decoder.SLIDING else whole for kind in decoder.read_layer_types(read, kinds)]


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    dense, norm = decoder.read_dense(read), read_norm(read)
    return tuple(decoder.layer(attention, dense, norm) for attention in read_attentions(read))


def hub_fields(config: ModelConfig) -> dict[str, Any]:
    windows = decoder.window_fields(config)
    kinds, is_windowed = windows["layer_types"], windows["sliding_window"] is not None
    return {
        **decoder.common_fields(config),
        **windows,
        "use_sliding_window": is_windowed,
        "max_window_layers": kinds.index(decoder.SLIDING) if is_windowed else config.n_layers,
    }


FAMILY = Family(
    name="Qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    aliases=decoder.ALIASES,
    defaults=DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=decoder.TOP_PLACES,
    layer_places=decoder.LAYER_PLACES,
    hub_fields=hub_fields,
    gguf=GgufNames(
        architecture="qwen3", demands=frozenset({Role.Q_NORM, Role.K_NORM}), has_free_heads=True, has_head_size=True
    ),
    mlx=MlxNames(can=decoder.MLX_CAN | {MlxCan.FREE_HEADS}, ropes=decoder.MLX_ROPES),
    servers=ServerNames(),
)
