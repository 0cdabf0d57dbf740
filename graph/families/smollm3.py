"""SmolLM3: Llama's layers, of which every fourth has no rope.

Source: transformers `configuration_smollm3.py`, `modeling_smollm3.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..blocks import Attention, Branches
from ..config import ModelConfig
from ..config_fields import Fields
from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, ServerNames
from .reading import read_n_layers, read_norm

_DEFAULTS: dict[str, Any] = {**decoder.DEFAULTS, "tie_word_embeddings": True, "rope_theta": 2_000_000.0}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    norm, dense = read_norm(read), decoder.read_dense(read)
    turning = decoder.read_attention(read)
    still = replace(turning, rope=None)
    if read.flag("use_sliding_window", False) and read.value("sliding_window") is not None:
        still = replace(still, window=read.number("sliding_window", int))
    turning_layers = _turning(read)
    kinds = [decoder.FULL if turns or still.window is None else decoder.SLIDING for turns in turning_layers]
    names = decoder.read_layer_types(read, kinds)
    window = still.window
    layers = []
    for turns, name in zip(turning_layers, names, strict=False):  # lists of another length are a fault by now
        attention = replace(turning if turns else still, window=window if name == decoder.SLIDING else None)
        layers.append(decoder.layer(attention, dense, norm))
    return tuple(layers)


def _turning(read: Fields) -> list[bool]:
    """Whether each layer has a rope: `no_rope_layers` holds a one where it has."""
    n_layers, given = read_n_layers(read), read.items("no_rope_layers", int)
    if given is not None and len(given) == n_layers:
        return [bool(item) for item in given]
    if given is not None:
        read.faults.add(f"no_rope_layers has {len(given)} entries but num_hidden_layers is {n_layers}")
    interval = read.number("no_rope_layer_interval", int, 4)
    return [(i + 1) % interval != 0 for i in range(n_layers)]


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    attention = config.of_kind(Attention).values()
    windows = decoder.window_fields(config)
    return {
        **decoder.common_fields(config),
        "no_rope_layers": [int(block.rope is not None) for block in attention],
        "use_sliding_window": windows["sliding_window"] is not None,
        **windows,
    }


FAMILY = Family(
    name="SmolLM3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    aliases=decoder.ALIASES,
    defaults=_DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=decoder.TOP_PLACES,
    layer_places=decoder.LAYER_PLACES,
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="smollm3",
        has_free_heads=True,
        pairs_neighbours=True,
        turns=lambda layer: (layer + 1) % 4 != 0,
        keys=decoder.GGUF_KEYS,
    ),
    mlx=MlxNames(
        can=decoder.MLX_CAN | {MlxCan.FREE_HEADS, MlxCan.BIASES, MlxCan.NO_ROPE, MlxCan.SOME_WINDOWS},
        ropes=decoder.MLX_ROPES,
    ),
    servers=ServerNames(),
)
