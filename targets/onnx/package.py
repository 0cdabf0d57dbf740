"""The files beside the graphs: what Transformers.js, transformers, onnxruntime-genai and scripts read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.graph import WeightGraph
from ...graph.source import assets as names
from ...graph.source.config_file import OWN_NAMES
from ..hub_folder import base_config, common_files, json_bytes
from .genai import GENAI_CONFIG, genai_config, preferred
from .names import known_names, own_names

# Caches of these variants are half precision; Transformers.js up to 4.1 asks the config.
HALF_CACHES = {"fp16": "float16", "q4f16": "float16"}

# What clients ask of a config by one spelling, where checkpoints have several.
_CLIENT_FIELDS = (
    "layer_types", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "conv_L_cache", "rope_theta", "rope_parameters", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor",
    "original_max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def shared_files(
    graph: WeightGraph, main_files: Mapping[str, str], n_chunks: Mapping[str, int], *, genai: Collection[str]
) -> dict[str, bytes]:
    """Config, generation config, tokenizer and template for a folder of variants.

    `main_files` maps each quant to its graph's path, `n_chunks` the graph's file name to its number of data files;
    `genai` are the quants that onnxruntime-genai runs.
    """
    files = common_files(graph)
    if graph.config.vectors is not None:
        files.pop(names.GENERATION_CONFIG, None)
        return files | graph.assets.retrieval | {CONFIG_FILE: json_bytes(_config(graph, n_chunks))}
    if genai:
        files[GENAI_CONFIG] = json_bytes(genai_config(graph, main_files[preferred(genai)]))
    generation = {**_token_ids(graph), **graph.assets.generation_config, **graph.stops.field}
    return files | {
        CONFIG_FILE: json_bytes(_config(graph, n_chunks)),
        names.GENERATION_CONFIG: json_bytes(generation),
    }


def _config(graph: WeightGraph, n_chunks: Mapping[str, int]) -> dict[str, Any]:
    """The checkpoint's config, with the spellings that some client insists on added."""
    config = graph.config
    fields = config.family.hub_fields(config)
    written = base_config(graph)
    written.pop("full_attn_idxs", None)
    written |= {key: fields[key] for key in _CLIENT_FIELDS if key in fields}
    written |= _token_ids(graph)
    written.pop("tie_embedding", None)
    known, own = known_names(config), own_names(config)
    if known != own:
        written |= {**known, OWN_NAMES: own}
    given = written.get("transformers.js_config")
    written["transformers.js_config"] = {
        **(given if isinstance(given, dict) else {}),
        "use_external_data_format": dict(sorted(n_chunks.items())),
        "kv_cache_dtype": HALF_CACHES,
    }
    return written


def _token_ids(graph: WeightGraph) -> dict[str, int]:
    config = graph.config
    ids = {"bos_token_id": config.bos_token_id, **graph.stops.single, "pad_token_id": config.pad_token_id}
    return {key: value for key, value in ids.items() if value is not None}
