"""Models of these families, and near them, that are no causal language models: named for what they are.

Their configs and tensors look like a language model's. Converted as one they would run, and be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .family import Family
from .reading import named_classes

_LANGUAGE_MODEL = "ForCausalLM"
# Part of a class name, without case -> what such a model is. The first that fits is the answer.
_CLASSES = (
    ("colbert", "a retrieval model (ColBERT)"),
    ("embedding", "an embedding model"),
    ("bidirectional", "a bidirectional encoder"),
    ("encoder", "a bidirectional encoder"),
    ("formaskedlm", "a masked language model"),
    ("forsequenceclassification", "a classifier"),
    ("fortokenclassification", "a token classifier"),
    ("forquestionanswering", "a question-answering model"),
    ("rewardmodel", "a reward model"),
    ("valuehead", "a reward model"),
    ("audio", "an audio model"),
    ("speech", "an audio model"),
    ("lfm2vl", "a vision-language model"),
    ("lfm3vl", "a vision-language model"),
    ("imagetexttotext", "a vision-language model"),
    ("forconditionalgeneration", "a model of text and other inputs"),
)
# Which modules a folder of sentence-transformers or PyLate holds, and what else it says of them.
MODULES_FILE, SENTENCE_CONFIG = "modules.json", "config_sentence_transformers.json"
_MODEL_TYPES = {
    "lfm3_vl": "a vision-language model",
    "lfm3_omni": "a model of text and other inputs",
    "lfm3_audio": "an audio model",
    "lfm2_vl": "a vision-language model",
    "lfm2-vl": "a vision-language model",
    "lfm2_audio": "an audio model",
    "lfm2_bidirectional": "a bidirectional encoder",
    "lfm2_encoder": "a bidirectional encoder",
    "lfm2_colbert": "a retrieval model (ColBERT)",
    "lfm2_embedding": "an embedding model",
}
# Families whose layers hold what no block says yet.
_MISSING_BLOCKS = {
    "Mamba-2 layers": ("mamba2", "nemotron_h", "bamba", "zamba2", "falcon_h1", "jamba"),
    "gated delta nets": ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "kimi_linear"),
    "AltUp, Laurel and embeddings of each layer": ("gemma3n", "gemma3n_text"),
    "embeddings of each layer and keys that layers share": ("gemma4", "gemma4_text"),
    "capped scores and logits": ("gemma2",),
    "latent attention": ("deepseek_v2", "deepseek_v3", "minicpm3"),
    "attention sinks": ("gpt_oss",),
}
# Of these the one part that is a language model may be taken; and how the classes of such models end.
_OF_PARTS = frozenset(
    ("an audio model", "a vision-language model", "a model of text and other inputs", "a model of several parts")
)
_WRITERS = ("ForConditionalGeneration", "ForImageTextToText", _LANGUAGE_MODEL, "Model")
_BOTH_WAYS = {"is_causal": False, "use_bidirectional_attention": True}


def other_kind(raw: Mapping[str, Any]) -> str | None:
    """What a config describes, if that is no causal language model, with the field that says so; else None."""
    kind, why = _kind(raw)
    return None if kind is None else f"{kind} ({why})"


def has_text_part(raw: Mapping[str, Any]) -> bool:
    """Whether a config of several parts is of a model that writes text: one that retrieves or classifies has another head."""
    kind, _ = _kind(raw)
    writes = all(name.endswith(_WRITERS) for name in named_classes(raw))
    return writes and (kind is None or kind in _OF_PARTS) and _both_ways(raw) is None


def _kind(raw: Mapping[str, Any]) -> tuple[str | None, str]:
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type], f"model_type is '{model_type}'"
    for name in _class_names(raw):
        kind = next((kind for part, kind in _CLASSES if part in name.replace("_", "").lower()), None)
        if kind is not None and name.isprintable():
            return kind, f"architectures names {name}"
    if (why := _both_ways(raw)) is not None:
        return "a model that attends both ways", why
    return _of_parts(raw)


def _both_ways(raw: Mapping[str, Any]) -> str | None:
    found = next((key for key, value in _BOTH_WAYS.items() if raw.get(key) is value), None)
    return found and f"{found} is {str(raw[found]).lower()}"


def missing_block(model_type: object) -> str | None:
    """What layers of that type hold that graph/blocks.py does not say; None where that is not known."""
    return next((block for block, types in _MISSING_BLOCKS.items() if model_type in types), None)


def is_encoder(raw: Mapping[str, Any], family: Family | None, folder: Path) -> bool:
    """Whether a folder holds a model that gives vectors, of a class that its family has, and says how it does."""
    is_known = family is not None and bool(family.encoders.intersection(named_classes(raw)))
    return is_known and (folder / MODULES_FILE).is_file()


def retrieval_kind(raw: Mapping[str, Any], folder: Path) -> str | None:
    """A base model in a folder of sentence-transformers or PyLate: its head is a pooling, not the vocabulary's."""
    if any(name.endswith(_LANGUAGE_MODEL) for name in named_classes(raw)):
        return None
    found = next((name for name in (SENTENCE_CONFIG, MODULES_FILE) if (folder / name).is_file()), None)
    return f"a retrieval model of sentence-transformers ({found} is there)" if found else None


def _of_parts(raw: Mapping[str, Any]) -> tuple[str | None, str]:
    """A config without a type of its own, such as LFM2-Audio's, is known by the models nested in it."""
    key = next((key for key in ("lfm", "text_config") if isinstance(raw.get(key), Mapping)), None)
    if raw.get("model_type") is not None or key is None:
        return None, ""
    kind = "an audio model" if "codebooks" in raw or "preprocessor" in raw else "a model of several parts"
    return kind, f"{key} holds its language model's config"


def _class_names(raw: Mapping[str, Any]) -> list[str]:
    """The classes a config says the checkpoint was saved from; none if one of them is a causal language model."""
    names = named_classes(raw)
    if not names and isinstance(raw.get("auto_map"), Mapping):
        models = {key: value for key, value in raw["auto_map"].items() if key.startswith("AutoModel")}
        names = [value.rpartition(".")[2] for value in models.values() if isinstance(value, str)]
    return [] if any(name.endswith(_LANGUAGE_MODEL) for name in names) else names
