"""Llama 3.1 and 3.2, and what else is saved as Llama. Source: transformers `configuration_llama.py`, `modeling_llama.py`."""

from __future__ import annotations

from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, RopeTables, ServerNames
from .reading import read_norm

FAMILY = Family(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    aliases=decoder.ALIASES,
    defaults=decoder.DEFAULTS,
    read_layers=decoder.read_layers,
    read_norm=read_norm,
    top_places=decoder.TOP_PLACES,
    layer_places=decoder.LAYER_PLACES,
    hub_fields=decoder.common_fields,
    gguf=GgufNames(
        architecture="llama",
        takes=decoder.BIASES,
        has_free_heads=True,
        pairs_neighbours=True,
        rope_tables=RopeTables.TAKEN,
        keys=decoder.GGUF_KEYS,
        has_head_size=True,
        wide_values=80,
    ),
    mlx=MlxNames(can=decoder.MLX_CAN | {MlxCan.FREE_HEADS, MlxCan.BIASES}, ropes=decoder.MLX_ROPES),
    servers=ServerNames(),
)
