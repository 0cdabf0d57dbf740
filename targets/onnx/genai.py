"""`genai_config.json`: how onnxruntime-genai runs a folder whose names are those of Transformers.js.

It knows caches by pattern, all of one length, and feeds `num_logits_to_keep` where a graph has it.
Source: onnxruntime-genai 0.18, `src/config.cpp`, and the builder's own files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ...graph.blocks import Attention, ShortConv
from ...graph.graph import WeightGraph
from ...graph.source.stops import as_ids
from ...quantize.allotment.wanted import base_of
from ...quantize.policies.onnx import AUTO_BASE
from .names import known_names

GENAI_CONFIG = "genai_config.json"

# Which graph is run when several lie in the folder: the CPU's best first. `Config.overlay` chooses another.
_PREFERENCE = ("q4", "q4_mixed", "q8", "fp32", "q4f16", "fp16")
# With a cache that past and present share, memory is taken for `max_length` tokens at once.
_MAX_LENGTH = 4096
# Settings of sampling -> the range that genai takes; it refuses the folder for a null or a value beyond it.
_SEARCH = {
    "do_sample": (False, True),
    "temperature": (0, math.inf),
    "top_k": (0, math.inf),
    "top_p": (0, 1),
    "repetition_penalty": (0, math.inf),
}


def preferred(quants: Iterable[str]) -> str:
    """The quant of a folder that genai is pointed at."""
    return min(quants, key=lambda quant: _PREFERENCE.index(base_of(quant, AUTO_BASE)))


def genai_config(graph: WeightGraph, main_file: str) -> dict[str, Any]:
    """The config for a graph file, its path relative to the folder."""
    config, known = graph.config, known_names(graph.config)
    generation, stops = graph.assets.generation_config, graph.stops
    ids = {
        "bos_token_id": _first(config.bos_token_id, generation.get("bos_token_id")),
        **stops.field,
        "pad_token_id": _first(config.pad_token_id, generation.get("pad_token_id"), stops.main),
    }
    conv, attention = config.first(ShortConv), config.first(Attention)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": main_file,
        "head_size": attention and attention.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": attention and attention.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": attention and attention.n_kv_heads,
        "layer_types": known["layer_types"] if conv else None,
        "conv_cache_size": conv and conv.width,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
            **({"past_conv_names": "past_conv.%d"} if conv else {}),
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
            **({"present_conv_names": "present_conv.%d"} if conv else {}),
        },
    }
    return {
        "model": {
            "type": config.family.onnx.genai_type or known["model_type"],
            "vocab_size": config.vocab_size,
            "context_length": config.context_length,
            **{key: value for key, value in ids.items() if value is not None},
            "decoder": {key: value for key, value in decoder.items() if value is not None},
        },
        "search": {
            "max_length": min(config.context_length, _MAX_LENGTH),
            "past_present_share_buffer": True,
            **{key: generation[key] for key, (low, high) in _SEARCH.items() if _in(generation.get(key), low, high)},
        },
    }


def _first(*ids: int | list[int] | None) -> int | None:
    """The first id that is given; of a list, its first."""
    return next((i for given in ids for i in as_ids(given)), None)


def _in(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high
