"""What the model card's front matter says of a model, as GGUF metadata.

Source: llama.cpp `gguf-py/gguf/metadata.py`.
"""

from __future__ import annotations

from typing import Any

from .header import KeyValue, string, strings, uint32

_TEXTS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
# Lists, each gathered from two fields of the card.
_LISTS = {"general.tags": ("tags", "pipeline_tag"), "general.languages": ("languages", "language")}
_SOURCES = {"base_model": "general.base_model", "datasets": "general.dataset"}


def front_matter(model_card: str | None) -> dict[str, Any]:
    """The YAML between the `---` lines a card starts with; empty without one, or without PyYAML.

    A card is prose for people: one that is malformed says nothing, and does not stop a conversion.
    """
    lines = (model_card or "").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return {}
    try:
        found = yaml.load("\n".join(lines[1 : lines.index("---", 1)]), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def card_metadata(card: dict[str, Any]) -> list[KeyValue]:
    """License, base models, datasets, tags and languages, in the converter's order."""
    pairs = [string(key, ",".join(texts)) for field, key in _TEXTS.items() if (texts := _texts(card.get(field)))]
    for field, prefix in _SOURCES.items():
        pairs += _sources(prefix, _texts(card.get(field)))
    for key, fields in _LISTS.items():
        values = [text for field in fields for text in _texts(card.get(field))]
        pairs += [strings(key, values)] if values else []
    return pairs


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text]


def _sources(prefix: str, names: list[str]) -> list[KeyValue]:
    """Where a model comes from: hub ids as name, organization and address; other addresses as they are."""
    pairs = [uint32(f"{prefix}.count", len(names))] if names else []
    for i, name in enumerate(names):
        organization, _, model = name.partition("/")
        if "://" in name:
            pairs.append(string(f"{prefix}.{i}.repo_url", name))
        elif not model:
            pairs.append(string(f"{prefix}.{i}.name", _title(name)))
        else:
            pairs.append(string(f"{prefix}.{i}.name", _title(model)))
            pairs.append(string(f"{prefix}.{i}.organization", _title(organization)))
            pairs.append(string(f"{prefix}.{i}.repo_url", f"https://huggingface.co/{name}"))
    return pairs


def _title(name: str) -> str:
    """`LFM2-1.2B-chat` as `LFM2 1.2B Chat`: lower-case words are capitalised, numbers and acronyms kept."""
    words = name.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not word[0].isdigit() else word for word in words)
