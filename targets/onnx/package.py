"""The files beside the graphs: what Transformers.js, transformers, onnxruntime-genai and scripts read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...convert.model import assets as names
from ...convert.model.config import CONFIG_FILE, ModelConfig
from ...convert.model.graph import WeightGraph
from ...convert.model.tokenizer import TOKENIZER_FILE
from .genai import GENAI_CONFIG, genai_config, preferred

# Caches of these variants are half precision; Transformers.js up to 4.1 asks the config.
_HALF_CACHES = {"fp16": "float16", "q4f16": "float16"}


def shared_files(graph: WeightGraph, main_files: Mapping[str, str], n_chunks: Mapping[str, int]) -> dict[str, bytes]:
    """Config, generation config, tokenizer and template for a folder of variants.

    `main_files` maps each quant to its graph's path, `n_chunks` the graph's file name to its number of data files.
    """
    files = {
        CONFIG_FILE: _json(_config(graph, n_chunks)),
        GENAI_CONFIG: _json(genai_config(graph, main_files[preferred(main_files)])),
    }
    assets = graph.assets
    generation = {**_token_ids(graph.config), **assets.generation_config}
    files[names.GENERATION_CONFIG] = _json(generation)
    if graph.tokenizer is not None:
        files[TOKENIZER_FILE] = graph.tokenizer.raw
        files[names.TOKENIZER_CONFIG] = _json(_tokenizer_config(graph))
    if assets.special_tokens_map:
        files[names.SPECIAL_TOKENS] = _json(assets.special_tokens_map)
    if assets.chat_template is not None:
        files[names.CHAT_TEMPLATE] = assets.chat_template.encode()
    if assets.license is not None:
        files["LICENSE"] = assets.license.encode()
    return files


def _config(graph: WeightGraph, n_chunks: Mapping[str, int]) -> dict[str, Any]:
    """The checkpoint's config, with the spellings that some client insists on added."""
    config = graph.config
    written = dict(config.raw)
    written.pop("full_attn_idxs", None)
    written |= {
        "layer_types": [operator.value for operator in config.operators],
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "hidden_size": config.hidden_size,
        "conv_L_cache": config.conv_width,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tied,
        **_token_ids(config),
    }
    written.pop("tie_embedding", None)
    own = written.get("transformers.js_config")
    written["transformers.js_config"] = {
        **(own if isinstance(own, dict) else {}),
        "use_external_data_format": dict(sorted(n_chunks.items())),
        "kv_cache_dtype": _HALF_CACHES,
    }
    return written


def _token_ids(config: ModelConfig) -> dict[str, Any]:
    eos = config.eos_token_ids
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def _tokenizer_config(graph: WeightGraph) -> dict[str, Any]:
    """With the template inlined: Transformers.js reads it from nowhere else."""
    written = dict(graph.assets.tokenizer_config)
    written.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if graph.assets.chat_template is not None:
        written["chat_template"] = graph.assets.chat_template
    return written


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
