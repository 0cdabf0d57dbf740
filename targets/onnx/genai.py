"""`genai_config.json`: how onnxruntime-genai runs a folder whose names are those of Transformers.js.

It knows LFM2's caches by pattern, and feeds `num_logits_to_keep` where a graph has it.
Source: onnxruntime-genai 0.18, `src/config.cpp`, and the builder's own files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...convert.model.graph import WeightGraph

GENAI_CONFIG = "genai_config.json"

# Which graph is run when several lie in the folder: the CPU's best first. `Config.overlay` chooses another.
_PREFERENCE = ("q4", "q4_mixed", "q8", "fp32", "q4f16", "fp16")
# With a cache that past and present share, memory is taken for `max_length` tokens at once.
_MAX_LENGTH = 4096
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def preferred(quants: Iterable[str]) -> str:
    """The quant of a folder that genai is pointed at."""
    return min(quants, key=_PREFERENCE.index)


def genai_config(graph: WeightGraph, main_file: str) -> dict[str, Any]:
    """The config for a graph file, its path relative to the folder."""
    config = graph.config
    eos = config.eos_token_ids
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "pad_token_id": next((i for i in (config.pad_token_id, *eos) if i is not None), None),
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": main_file,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "layer_types": [operator.value for operator in config.operators],
        "conv_cache_size": config.conv_width,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
            "past_conv_names": "past_conv.%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
            "present_conv_names": "present_conv.%d",
        },
    }
    generation = graph.assets.generation_config
    return {
        "model": {
            "type": config.model_type,
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
            **{key: value for key, value in ids.items() if value is not None},
            "decoder": decoder,
        },
        "search": {
            "max_length": min(config.context_length, _MAX_LENGTH),
            "past_present_share_buffer": True,
            **{key: generation[key] for key in _SEARCH if key in generation},
        },
    }
