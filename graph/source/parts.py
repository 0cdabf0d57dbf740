"""Models of several parts, such as a vision tower beside a language model: the language model is taken, the rest is left.

Source: how transformers 4 and 5 nest the configs of vision-language models, and name their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..families import find_family
from ..families.other_kinds import has_text_part

_TEXT_CONFIG = "text_config"
# What a config of several parts says of the whole, for a text config that does not say it.
_OF_THE_WHOLE = (
    "dtype", "torch_dtype", "transformers_version", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "quantization_config",
)  # fmt: skip
# How the language model's tensors are named beside the others, in the order in which prefixes must be tried.
_PREFIXES = (("model.language_model.", "model."), ("language_model.", ""))
_HEAD = "lm_head."
_SHOWN = 3


def text_config(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The config of a model's text part and a note on what was left out; the config itself of a model of one part."""
    text = raw.get(_TEXT_CONFIG)
    family = find_family(text.get("model_type")) if isinstance(text, Mapping) else None
    if not isinstance(text, Mapping) or family is None or not has_text_part(raw):
        return dict(raw), None
    whole = {key: raw[key] for key in _OF_THE_WHOLE if raw.get(key) is not None}
    found = {**whole, **{key: value for key, value in text.items() if value is not None}}
    left = [key for key in raw if key.endswith("_config") and key not in (_TEXT_CONFIG, "quantization_config")]
    what = ", ".join(left[:_SHOWN]) or "no other part"
    note = f"the config is of a model of several parts ({raw.get('model_type')}): its text model is taken, left out: {what}"
    return {**found, "architectures": [family.architecture]}, note


def text_names(names: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Stored name to the text model's name for it, and the stored names of all else; of a model of one part, all."""
    prefix = next((each for each in _PREFIXES if any(name.startswith(each[0]) for name in names.values())), None)
    if prefix is None:
        return dict(names), []
    found, left = {}, []
    for stored, name in names.items():
        if name.startswith(prefix[0]):
            found[stored] = prefix[1] + name.removeprefix(prefix[0])
        elif name.startswith(_HEAD):
            found[stored] = name
        else:
            left.append(stored)
    return found, left


def parts_note(left: list[str]) -> str | None:
    """What was left of the tensors; None if nothing was."""
    if not left:
        return None
    modules = sorted({name.removeprefix("model.").split(".")[0] for name in left})
    return f"{len(left)} tensors of {', '.join(modules[:_SHOWN])} are left out: only the text model is converted"
