"""The metadata of a GGUF: what llama.cpp's converter writes, in its order.

Source: llama.cpp `conversion/` (`base.py` and a file a family), `gguf-py/gguf/metadata.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...graph.blocks import Attention, Dense, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS
from ...graph.source.front_matter import front_matter
from ...quantize.gguf_file.header import KeyValue, ValueType, booleans, float32, int32s, string, uint32
from ...quantize.gguf_file.tensor_names import gguf_names
from ...quantize.policies.gguf import FILE_TYPES
from .card import card_metadata
from .expressible import any_attention
from .stored import Stored
from .vocab import vocabulary

_QUANTIZATION_VERSION = uint32("general.quantization_version", 2)
_SIGMOID = 2

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
    graph: WeightGraph, stored: Iterable[Stored], quant: str, *, quantized: bool, pre: str | None = None
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
    """llama.cpp's name of it, the first part of its keys."""
    return gguf_names(config.family).architecture


def _general(graph: WeightGraph, stored: Iterable[Stored]) -> list[KeyValue]:
    tensors = tuple(stored)
    hub_name = graph.config.raw.get("_name_or_path")
    return [
        string("general.architecture", architecture(graph.config)),
        string("general.type", "model"),
        *_sampling(graph.assets.generation_config),
        *card_metadata(
            front_matter(graph.assets.model_card),
            folder_name=graph.name,
            hub_name=hub_name if isinstance(hub_name, str) else None,
            n_parameters=sum(tensor.size for tensor in tensors),
            size_label=_size_label(graph.config, tensors),
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
    """The blocks: first what the converter writes of every model, then what it adds for an architecture."""
    arch = architecture(config)
    dense, mixture = config.shared(Dense), config.mixture
    # The converter writes the size that a config gives though no layer is dense.
    ffn_size = config.raw.get("intermediate_size") if dense is None else dense.size
    pairs = [
        uint32(f"{arch}.block_count", config.n_layers),
        uint32(f"{arch}.context_length", config.context_length),
        uint32(f"{arch}.embedding_length", config.hidden_size),
        *([] if ffn_size is None else [uint32(f"{arch}.feed_forward_length", ffn_size)]),
        *_heads(arch, config),
        *_ropes(arch, config),
        float32(f"{arch}.attention.layer_norm_rms_epsilon", config.norm_eps),
    ]
    if mixture:
        pairs.append(uint32(f"{arch}.expert_count", mixture.n_experts))
        pairs.append(uint32(f"{arch}.expert_used_count", mixture.top_k))
    pairs += [*_head_sizes(arch, config), file_type]
    if mixture:
        pairs.append(uint32(f"{arch}.expert_feed_forward_length", mixture.size))
        pairs.append(uint32(f"{arch}.leading_dense_block_count", len(config.of_kind(Dense))))
        pairs.append(uint32(f"{arch}.expert_gating_func", _SIGMOID))
        if mixture.scaling != 1.0:
            pairs.append(float32(FOLDED_SCALE_KEY, mixture.scaling))
    return [
        *pairs,
        uint32(f"{arch}.vocab_size", config.vocab_size),
        *_convolutions(arch, config),
        *_windows(arch, config),
    ]


def _heads(arch: str, config: ModelConfig) -> list[KeyValue]:
    """Zero key-value heads mark a layer as a short convolution."""
    attention = any_attention(config)
    n_kv_heads = [mixer.n_kv_heads if isinstance(mixer, Attention) else 0 for mixer in config.mixers]
    return [
        uint32(f"{arch}.attention.head_count", attention.n_heads),
        int32s(f"{arch}.attention.head_count_kv", n_kv_heads),
    ]


def _ropes(arch: str, config: ModelConfig) -> list[KeyValue]:
    """The bases of the default tables: what a rope's own differs by is a tensor."""
    full, sliding = any_attention(config, is_sliding=False).rope, any_attention(config, is_sliding=True)
    pairs = [] if full is None else [float32(f"{arch}.rope.freq_base", full.theta)]
    if sliding.window is not None and sliding.rope is not None:
        pairs.append(float32(f"{arch}.rope.freq_base_swa", sliding.rope.theta))
    return pairs


def _head_sizes(arch: str, config: ModelConfig) -> list[KeyValue]:
    """Where the config gives a size, as the converter has it, and always beside windows; else llama.cpp derives it."""
    if config.raw.get("head_dim") is None and not gguf_names(config.family).has_windows:
        return []
    head_dim = any_attention(config).head_dim
    return [uint32(f"{arch}.attention.{kind}_length", head_dim) for kind in ("key", "value")]


def _convolutions(arch: str, config: ModelConfig) -> list[KeyValue]:
    conv = config.shared(ShortConv)
    return [] if conv is None else [uint32(f"{arch}.shortconv.l_cache", conv.width)]


def _windows(arch: str, config: ModelConfig) -> list[KeyValue]:
    """The window, the layers that have it, and that heads turn whole: pairs at rest are a matter of the factors."""
    sliding = any_attention(config, is_sliding=True)
    if sliding.window is None:
        return []
    has_window = [isinstance(mixer, Attention) and mixer.window is not None for mixer in config.mixers]
    return [
        uint32(f"{arch}.attention.sliding_window", sliding.window),
        booleans(f"{arch}.attention.sliding_window_pattern", has_window),
        uint32(f"{arch}.rope.dimension_count", sliding.head_dim),
    ]


def _size_label(config: ModelConfig, stored: Iterable[Stored]) -> str:
    """`1.2B`; of a mixture `32x933M`: experts, and what one of them weighs with all that is shared."""
    n_experts = config.mixture.n_experts if config.mixture else 1
    total = sum(tensor.size // (n_experts if tensor.role in EXPERTS else 1) for tensor in stored)
    return f"{n_experts}x{_rounded(total)}" if config.mixture else _rounded(total)


def _rounded(n: int) -> str:
    factor, suffix = next(((f, s) for f, s in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if n > f), (1e3, "K"))
    whole = str(round(n / factor)).lstrip("0")
    return f"{n / factor:.{max(0, 2 - len(whole))}f}{suffix}"
