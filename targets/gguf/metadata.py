"""The metadata of a GGUF: what llama.cpp's converter writes, in its order.

Source: llama.cpp `conversion/` (`base.py` and a file a family), `gguf-py/gguf/metadata.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS
from ...graph.source.front_matter import front_matter
from ...quantize.gguf_file.header import KeyValue, ValueType, string, uint32
from ...quantize.gguf_file.tensor_names import gguf_names
from ...quantize.policies.gguf import FILE_TYPES
from .card import card_metadata
from .numbers import FILE_TYPE_KEY, PROJECTED_KEY, VOCAB_SIZE, numbers_of
from .stored import Stored
from .vocab import vocabulary

_QUANTIZATION_VERSION = uint32("general.quantization_version", 2)

# How the text of an override is read.
_PARSERS: dict[ValueType, Callable[[str], Any]] = {
    ValueType.STRING: str,
    ValueType.BOOL: {"true": True, "false": False}.__getitem__,
    **dict.fromkeys((ValueType.UINT16, ValueType.UINT32, ValueType.INT32, ValueType.UINT64), int),
    ValueType.FLOAT32: float,
}

SAMPLING_KEY = "general.sampling."
# What llama.cpp samples with unless told otherwise -> its type and fields of generation_config.json, the first there.
SAMPLING = {
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

# Ours, read by nobody else: that scales were searched, and what the source's weights were stored as.
REFINED_KEY, SOURCE_KEY = "lfm_convert.refined", "lfm_convert.quantised_from"


def metadata(
    graph: WeightGraph, stored: Iterable[Stored], quant: str, *, quantized: bool, pre: str | None = None
) -> list[KeyValue]:
    """All pairs of the file; `pre` names the pre-tokenizer instead of having it recognised.

    llama-quantize takes the version and the file type out of what the converter wrote and appends them again.
    """
    names = gguf_names(graph.config.family)
    model = numbers_of(graph.config, file_type=FILE_TYPES[quant]).pairs(names)
    # A projection is a tensor beside the checkpoint's, whose key the converter writes when it comes across it: at first.
    firsts = (*names.early_keys, PROJECTED_KEY)
    early = [pair for pair in model if pair.key.removeprefix(f"{names.architecture}.") in firsts]
    model = [pair for pair in model if pair not in early]
    if graph.tokenizer is None and not any(pair.key.endswith(VOCAB_SIZE) for pair in model):
        model.append(uint32(names.architecture + VOCAB_SIZE, graph.config.vocab_size))  # which the tokens say elsewhere
    first, *general = _general(graph, stored)
    # The converter that sorts the rows of heads is also the one that repeats whether a space goes before a text.
    general, vocab = [first, *early, *general], vocabulary(graph, pre=pre, says_prefix=names.pairs_neighbours)
    if quantized:
        file_type = next(pair for pair in model if pair.key == FILE_TYPE_KEY)
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
    for name, (kind, fields) in SAMPLING.items():
        value = next((generation_config[field] for field in fields if field in generation_config), None)
        wanted = str if kind is ValueType.STRING else int | float
        if isinstance(value, wanted) and not isinstance(value, bool):
            pairs.append(KeyValue(SAMPLING_KEY + name, kind, int(value) if kind is ValueType.INT32 else value))
    return pairs


def _size_label(config: ModelConfig, stored: Iterable[Stored]) -> str:
    """`1.2B`; of a mixture `32x933M`: experts, and what one of them weighs with all that is shared."""
    n_experts = config.mixture.n_experts if config.mixture else 1
    total = sum(tensor.size // (n_experts if tensor.role in EXPERTS else 1) for tensor in stored)
    return f"{n_experts}x{_rounded(total)}" if config.mixture else _rounded(total)


def _rounded(n: int) -> str:
    factor, suffix = next(((f, s) for f, s in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if n > f), (1e3, "K"))
    whole = str(round(n / factor)).lstrip("0")
    return f"{n / factor:.{max(0, 2 - len(whole))}f}{suffix}"
