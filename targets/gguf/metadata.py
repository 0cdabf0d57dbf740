"""The metadata of an LFM2 GGUF: what llama.cpp's converter writes, in its order.

Source: llama.cpp `conversion/base.py`, `conversion/lfm2.py`, `gguf-py/gguf/metadata.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...convert.errors import UsageError
from ...convert.model.config import ModelConfig, Operator
from ...convert.model.graph import EXPERTS, Weight, WeightGraph
from .card import card_metadata, front_matter
from .header import KeyValue, ValueType, float32, int32s, string, uint32
from .vocab import vocabulary

_QUANTIZATION_VERSION = uint32("general.quantization_version", 2)
_SIGMOID = 2

# Quant -> `enum llama_ftype`.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
    "BF16": 32, "MXFP4_MOE": 38,
}  # fmt: skip

# How the text of an override is read.
_PARSERS: dict[ValueType, Callable[[str], Any]] = {
    ValueType.STRING: str,
    ValueType.BOOL: {"true": True, "false": False}.__getitem__,
    **dict.fromkeys((ValueType.UINT16, ValueType.UINT32, ValueType.INT32, ValueType.UINT64), int),
    ValueType.FLOAT32: float,
}

# What llama.cpp samples with unless told otherwise -> its type and fields of generation_config.json, the first there.
_SAMPLING = {
    "sequence": (ValueType.STRING, ("sequence",)),
    "top_k": (ValueType.INT32, ("top_k",)),
    "top_p": (ValueType.FLOAT32, ("top_p",)),
    "min_p": (ValueType.FLOAT32, ("min_p",)),
    "xtc_probability": (ValueType.FLOAT32, ("xtc_probability",)),
    "xtc_threshold": (ValueType.FLOAT32, ("xtc_threshold",)),
    "temp": (ValueType.FLOAT32, ("temperature",)),
    "penalty_last_n": (ValueType.INT32, ("penalty_last_n",)),
    "penalty_repeat": (ValueType.FLOAT32, ("penalty_repeat", "repetition_penalty")),
    "mirostat": (ValueType.INT32, ("mirostat",)),
    "mirostat_tau": (ValueType.FLOAT32, ("mirostat_tau",)),
    "mirostat_eta": (ValueType.FLOAT32, ("mirostat_eta",)),
}

# Ours, read by nobody else: what the stored expert down projections were multiplied by, and that scales were searched.
FOLDED_SCALE_KEY = "lfm_convert.folded_routed_scaling_factor"
REFINED_KEY = "lfm_convert.refined"


def metadata(
    graph: WeightGraph, stored: Iterable[Weight], quant: str, *, quantized: bool, pre: str | None = None
) -> list[KeyValue]:
    """All pairs of the file; `pre` names the pre-tokenizer instead of having it recognised.

    llama-quantize takes the version and the file type out of what the converter wrote and appends them again.
    """
    file_type = uint32("general.file_type", FILE_TYPES[quant])
    general, model, vocab = _general(graph, stored), _model(graph.config, file_type), vocabulary(graph, pre=pre)
    if quantized:
        kept = [pair for pair in model if pair is not file_type]
        return [*general, *kept, *vocab, _QUANTIZATION_VERSION, file_type]
    return [*general, *model, _QUANTIZATION_VERSION, *vocab]


def overridden(pairs: Iterable[KeyValue], texts: Iterable[str]) -> list[KeyValue]:
    """The pairs with `KEY=VALUE` texts in place of their values; an unknown key is added as text.

    Raises: UsageError for a text without '=', or a value that is not of its key's type.
    """
    found = {pair.key: pair for pair in pairs}
    for text in texts:
        key, separator, value = text.partition("=")
        old = found.get(key, string(key, ""))
        if not (key and separator) or old.type not in _PARSERS:
            raise UsageError(f"--metadata {text}: expected KEY=VALUE with the key of a text, number or true/false")
        try:
            found[key] = replace(old, value=_PARSERS[old.type](value))
        except (ValueError, KeyError):
            raise UsageError(f"--metadata {text}: {key} is of type {old.type.name.lower()}") from None
    return list(found.values())


def architecture(config: ModelConfig) -> str:
    """`lfm2` or `lfm2moe`."""
    return "lfm2moe" if config.moe else "lfm2"


def _general(graph: WeightGraph, stored: Iterable[Weight]) -> list[KeyValue]:
    weights = tuple(stored)
    hub_name = graph.config.raw.get("_name_or_path")
    return [
        string("general.architecture", architecture(graph.config)),
        string("general.type", "model"),
        *_sampling(graph.assets.generation_config),
        *card_metadata(
            front_matter(graph.assets.model_card),
            folder_name=graph.name,
            hub_name=hub_name if isinstance(hub_name, str) else None,
            n_parameters=sum(_size(weight) for weight in weights),
            size_label=_size_label(graph.config, weights),
        ),
    ]


def _sampling(generation_config: dict[str, Any]) -> list[KeyValue]:
    pairs = []
    for name, (kind, fields) in _SAMPLING.items():
        value = next((generation_config[field] for field in fields if field in generation_config), None)
        wanted = str if kind is ValueType.STRING else int | float
        if isinstance(value, wanted) and not isinstance(value, bool):
            pairs.append(KeyValue(f"general.sampling.{name}", kind, int(value) if kind is ValueType.INT32 else value))
    return pairs


def _model(config: ModelConfig, file_type: KeyValue) -> list[KeyValue]:
    arch = architecture(config)
    # Zero key-value heads mark a layer as a short convolution.
    kv_heads = [config.n_kv_heads if op is Operator.ATTENTION else 0 for op in config.operators]
    pairs = [
        uint32(f"{arch}.block_count", config.n_layers),
        uint32(f"{arch}.context_length", config.context_length),
        uint32(f"{arch}.embedding_length", config.hidden_size),
        uint32(f"{arch}.feed_forward_length", config.ffn_size),
        uint32(f"{arch}.attention.head_count", config.n_heads),
        int32s(f"{arch}.attention.head_count_kv", kv_heads),
        float32(f"{arch}.rope.freq_base", config.rope_theta),
        float32(f"{arch}.attention.layer_norm_rms_epsilon", config.norm_eps),
    ]
    if config.moe:
        pairs.append(uint32(f"{arch}.expert_count", config.moe.n_experts))
        pairs.append(uint32(f"{arch}.expert_used_count", config.moe.top_k))
    if config.raw.get("head_dim") is not None:  # llama.cpp derives it where a config does not give it
        pairs.append(uint32(f"{arch}.attention.key_length", config.head_dim))
        pairs.append(uint32(f"{arch}.attention.value_length", config.head_dim))
    pairs.append(file_type)
    if config.moe:
        pairs.append(uint32(f"{arch}.expert_feed_forward_length", config.moe.ffn_size))
        pairs.append(uint32(f"{arch}.leading_dense_block_count", config.moe.n_dense_layers))
        pairs.append(uint32(f"{arch}.expert_gating_func", _SIGMOID))
        if config.moe.routed_scaling_factor != 1.0:
            pairs.append(float32(FOLDED_SCALE_KEY, config.moe.routed_scaling_factor))
    pairs.append(uint32(f"{arch}.vocab_size", config.vocab_size))
    pairs.append(uint32(f"{arch}.shortconv.l_cache", config.conv_width))
    return pairs


def _size_label(config: ModelConfig, stored: Iterable[Weight]) -> str:
    """`1.2B`; of a mixture `32x933M`: experts, and what one of them weighs with all that is shared."""
    n_experts = config.moe.n_experts if config.moe else 1
    total = 0
    for weight in stored:
        total += _size(weight) // n_experts if weight.role in EXPERTS else _size(weight)
    return f"{n_experts}x{_rounded(total)}" if config.moe else _rounded(total)


def _size(weight: Weight) -> int:
    return weight.view.n_rows * weight.view.n_cols


def _rounded(n: int) -> str:
    factor, suffix = next(((f, s) for f, s in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if n > f), (1e3, "K"))
    whole = str(round(n / factor)).lstrip("0")
    return f"{n / factor:.{max(0, 2 - len(whole))}f}{suffix}"
