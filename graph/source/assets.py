"""The files of a checkpoint that travel with its weights."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_text import parse_json

GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
# Fields of tokenizer_config.json: a list of further special tokens, or an object of those that have a name, which
# transformers 5 writes into a field of its own.
EXTRA_TOKENS = "extra_special_tokens"
MODEL_TOKENS = "model_specific_special_tokens"
# Named templates beside the default one, a file each, and where processors used to keep their only one.
NAMED_TEMPLATES = "additional_chat_templates"
LEGACY_TEMPLATE = "chat_template.json"
DEFAULT_TEMPLATE = "default"
_TOOL_TEMPLATE = "tool_use"
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_MAX_TEXT_BYTES = 4 << 20
_MAX_LICENSE_BYTES = 64 << 20
_CARD_BYTES = 1 << 20  # what a card says to programs stands at its start
_MAX_GUESS = 4096
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What is shipped beside the weights. Absent files are None or empty; texts are kept verbatim.

    `added_tokens` is added_tokens.json, token to id. `chat_template` is the default template, `named_templates` are
    the others by name.
    The license is kept as bytes, in whatever encoding; of the model card only the start is. `retrieval` are the files of
    modules of sentence-transformers, by their paths.
    """

    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    special_tokens_map: dict[str, Any] = field(default_factory=dict)
    added_tokens: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    named_templates: dict[str, str] = field(default_factory=dict)
    license: bytes | None = None
    model_card: str | None = None
    retrieval: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def tokenizer_settings(self) -> dict[str, Any]:
        """tokenizer_config.json as transformers takes it: special_tokens_map.json counts where the older files do."""
        config = self.tokenizer_config
        lists_tokens = config.get("added_tokens_decoder") is not None
        return config if lists_tokens else {**config, **self.special_tokens_map}

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that have a name, `bos_token` and the like, as transformers gives them to a template."""
        named = named_tokens(self.tokenizer_settings)
        return {key: text for key, value in named.items() if (text := token_text(value)) is not None}

    def template_for(self, tools: Sequence[Mapping[str, Any]] | None) -> str | None:
        """The template of a chat: as transformers and llama.cpp choose, one named `tool_use` where tools are given."""
        return self.named_templates.get(_TOOL_TEMPLATE, self.chat_template) if tools else self.chat_template


def named_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of tokenizer_config.json that have a name: `…_token`, and a model's own under any name."""
    own = (settings.get(field) for field in (MODEL_TOKENS, EXTRA_TOKENS))
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    for tokens in own:
        named |= tokens if isinstance(tokens, dict) else {}
    return named


def token_text(token: Any) -> str | None:
    """A special token's text; files give it bare or as an object with its `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def read_assets(folder: Path) -> Assets:
    """Reads what is there; nothing of it is executed.

    Raises: InputError for a file that is not what its name says, or larger than 4 MiB (a license: than 64 MiB).
    """
    tokenizer_config = _json(folder / TOKENIZER_CONFIG)
    templates = _templates(folder, tokenizer_config.get("chat_template"))
    licenses = (data for name in LICENSES if (data := _license(folder / name)) is not None)
    return Assets(
        generation_config=_json(folder / GENERATION_CONFIG),
        tokenizer_config=tokenizer_config,
        special_tokens_map=_json(folder / SPECIAL_TOKENS),
        added_tokens=_json(folder / ADDED_TOKENS),
        chat_template=templates.pop(DEFAULT_TEMPLATE, None),
        named_templates=templates,
        license=next(licenses, None),
        model_card=_card(folder / "README.md"),
    )


def _templates(folder: Path, inline: Any) -> dict[str, str]:
    """Every template by name; an empty one is none.

    With a file for the default one, only files count; else what tokenizer_config.json holds, then the legacy file.
    Source: transformers `tokenization_utils_base.py`, `_from_pretrained`.
    """
    files = {}
    for path in (folder / CHAT_TEMPLATE, *sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))):
        text = _text(path)
        if text is not None:
            files[DEFAULT_TEMPLATE if path.parent == folder else path.name.removesuffix(".jinja")] = text
    legacy = _inline_templates(_json(folder / LEGACY_TEMPLATE).get("chat_template"))
    found = files if DEFAULT_TEMPLATE in files else {**legacy, **_inline_templates(inline), **files}
    return {name: text for name, text in found.items() if text}


def _inline_templates(found: Any) -> dict[str, str]:
    """The templates of a JSON file by name: a text is the default one, a list holds named ones."""
    if isinstance(found, str):
        return {DEFAULT_TEMPLATE: found}
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    pairs = ((entry.get("name"), entry.get("template")) for entry in entries)
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _license(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > _MAX_LICENSE_BYTES:
        raise InputError(f"{path}: {size} bytes: expected at most {_MAX_LICENSE_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _card(path: Path) -> str | None:
    """The start of a card: prose for people, which stops no conversion, however it is encoded."""
    try:
        with path.open("rb") as file:
            data = file.read(_CARD_BYTES)
    except OSError:
        return None
    return _decoded(data)


def _decoded(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8, else UTF-16 by its zeros, else as Windows writes Western languages."""
    marked = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), None)
    if marked:
        return data.decode(marked, "replace")
    zeros = data[:_MAX_GUESS].count(0)
    if 4 * zeros > len(data[:_MAX_GUESS]):
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)  # which waits for the rest of a last character
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


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
        found = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
