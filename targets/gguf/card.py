"""What the model card's front matter and the model's name say of it, as GGUF metadata.

Source: llama.cpp `gguf-py/gguf/metadata.py`, `apply_metadata_heuristic`, `set_gguf_meta_model`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...quantize.gguf_file.header import KeyValue, string, strings, uint32
from .file_names import ModelId, model_id, title

# Field of the metadata -> fields of the card it is taken from, the first that is there.
_FIELDS = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
# Lists, each gathered from two fields of the card.
_LISTS = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
# What a model or a text comes from: the first of the fields that is there.
_SOURCES = {
    "base_model": ("base_model", "base_models", "base_model_sources"),
    "dataset": ("datasets", "dataset", "dataset_sources"),
}
_SOURCE_FIELDS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")
_HUB = "https://huggingface.co"
_ABSENT = ("", "~", "null", "Null", "NULL")  # how YAML spells nothing


def card_metadata(
    card: dict[str, Any], *, folder_name: str, hub_name: str | None, n_parameters: int, size_label: str
) -> list[KeyValue]:
    """Everything of `general.*` that says which model this is, in the converter's order.

    What the card leaves out follows from `hub_name`, config.json's `_name_or_path`, then from the folder's name;
    the size at last from the weights.
    """
    found = {field: text for field, names in _FIELDS.items() if (text := _first(card, names))}
    if hub_name and hub_name.count("/") <= 1:
        found = _with_id(found, model_id(hub_name, n_parameters))
    found = _with_id(found, model_id(folder_name, n_parameters))
    found.setdefault("name", folder_name)
    found.setdefault("size_label", size_label)
    pairs = [string(f"general.{field}", found[field]) for field in _FIELDS if field in found]
    for key, sources in _SOURCES.items():
        present = next((card[source] for source in sources if source in card), None)
        pairs += [] if present is None else _sources(f"general.{key}", present, n_parameters)
    for key, names in _LISTS.items():
        values = [text for name in names for text in _texts(card.get(name))]
        pairs += [strings(f"general.{key}", values)] if values else []
    return pairs


def _first(card: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((",".join(_texts(card[name])) for name in names if name in card), "")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text not in _ABSENT]


def _with_id(found: dict[str, str], parts: ModelId) -> dict[str, str]:
    """What is found, completed by the parts of a name."""
    said = {field: text for field, text in asdict(parts).items() if text}
    said |= {field: title(said[field]) for field in ("name", "organization") if field in said}
    return {**said, **found}


def _sources(prefix: str, present: Any, n_parameters: int) -> list[KeyValue]:
    """A count, then each source by its hub id, its address, or fields of its own."""
    entries = [entry for entry in (present if isinstance(present, list) else [present]) if entry not in _ABSENT]
    pairs = [uint32(f"{prefix}.count", len(entries))]
    for i, entry in enumerate(entries):
        said = entry if isinstance(entry, dict) else _source(str(entry), n_parameters)
        pairs += [string(f"{prefix}.{i}.{field}", str(said[field])) for field in _SOURCE_FIELDS if said.get(field)]
    return pairs


def _source(text: str, n_parameters: int) -> dict[str, str]:
    is_url = text.startswith(("http://", "https://", "ssh://"))
    on_hub = re.match(r"https?://huggingface.co/([^/]+/[^/]+)$", text) if is_url else None
    if is_url and on_hub is None:
        return {"repo_url": text}
    parts = model_id(on_hub[1] if on_hub else text, n_parameters)
    said = {"name": title(parts.name or text)}
    if parts.organization:
        said["organization"] = title(parts.organization)
        said["repo_url"] = f"{_HUB}/{parts.organization}/{parts.name}"
    if parts.version:
        said["version"] = parts.version
    return {**said, "repo_url": text} if is_url else said


# What of it a model keeps under whatever name and size: fields of a card by those of the metadata.
_KEPT = ("license", "license.name", "license.link")


def card_of(said: Mapping[str, Any]) -> str | None:
    """A card that says of licence, tags, languages and base models what a file's metadata does; None if that is nothing.

    The name and the size are the file's own and are read from it anew.
    """
    lines = {_FIELDS[field][0]: said.get(f"general.{field}") for field in _KEPT}
    lines |= {"tags": said.get("general.tags"), "language": said.get("general.languages"), "base_model": _hub_ids(said)}
    given = {key: value for key, value in lines.items() if value and _is_text(value)}
    body = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    return "\n".join(["---", *body, "---", ""]) if body else None


def _hub_ids(said: Mapping[str, Any]) -> list[str]:
    count = said.get("general.base_model.count")
    urls = (said.get(f"general.base_model.{i}.repo_url") for i in range(min(count, 16) if type(count) is int else 0))
    return [url.removeprefix(f"{_HUB}/") for url in urls if isinstance(url, str) and url.startswith(f"{_HUB}/")]


def _is_text(value: Any) -> bool:
    return all(isinstance(item, str) for item in (value if isinstance(value, list) else [value]))
