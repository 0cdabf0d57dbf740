"""The files of a checkpoint that travel with its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError

GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What is shipped beside the weights. Absent files are None or empty; texts are kept verbatim."""

    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    special_tokens_map: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    license: str | None = None
    model_card: str | None = None


def read_assets(folder: Path) -> Assets:
    """Reads what is there; nothing of it is executed.

    Raises: InputError for a file that is not what its name says, or larger than 4 MiB.
    """
    tokenizer_config = _json(folder / TOKENIZER_CONFIG)
    template = _text(folder / CHAT_TEMPLATE)
    if template is None:
        template = _inline_template(tokenizer_config.get("chat_template"))
    licenses = (text for name in _LICENSES if (text := _text(folder / name)) is not None)
    return Assets(
        generation_config=_json(folder / GENERATION_CONFIG),
        tokenizer_config=tokenizer_config,
        special_tokens_map=_json(folder / SPECIAL_TOKENS),
        chat_template=template,
        license=next(licenses, None),
        model_card=_text(folder / "README.md"),
    )


def _inline_template(found: Any) -> str | None:
    """The template of a tokenizer_config.json: a text, or of a list of named ones the default."""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > _MAX_TEXT_BYTES:
        raise InputError(f"{path}: {size} bytes: expected at most {_MAX_TEXT_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
