"""The files that every folder in the hub's layout has beside its weights, whichever runtime it is for.

They are the checkpoint's own, put so that each client finds what it looks for: transformers 4 and 5, Transformers.js,
mlx-lm, swift-transformers, onnxruntime-genai and an app's own code.
Source: transformers 4.57 and 5.23 `tokenization_utils_base.py`, Transformers.js `tokenizers.js`,
swift-transformers `Tokenizers/Tokenizer.swift`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from ..graph.graph import WeightGraph
from ..graph.source import assets as names
from ..graph.source.assets import Assets
from ..graph.source.stops import without_null_ids
from ..graph.source.tokenizer import TOKENIZER_FILE, Tokenizer

LICENSE = "LICENSE"

# The class that reads any tokenizer.json, under the name that every client knows; transformers 5 writes another.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# What quantised the checkpoint before: its weights are read as floats, so that none of it is true of an artifact.
# And the modules of its own that a config names, which no artifact brings: a client would look for them in vain.
_STALE = ("quantization_config", "quantization", "compression_config", "auto_map")
# The list of further special tokens as transformers 4 calls it; 5 reads it, too.
_OLDER = "additional_special_tokens"
_LOST = object()
_PLAIN = frozenset(string.ascii_letters + string.digits + "_-.")


def common_files(graph: WeightGraph, *, indent: int = 2) -> dict[str, bytes]:
    """Generation config, tokenizer, special tokens, chat templates and license, by path; all but the config."""
    assets = graph.assets
    files: dict[str, bytes] = {}
    if generation := {**assets.generation_config, **graph.stops.field}:
        files[names.GENERATION_CONFIG] = json_bytes(generation, indent=indent)
    if graph.tokenizer is not None:
        files[TOKENIZER_FILE] = graph.tokenizer.raw
        settings = tokenizer_config(assets, graph.tokenizer)
        files[names.TOKENIZER_CONFIG] = json_bytes(settings, indent=indent)
    if assets.special_tokens_map:
        special = _listed(assets.special_tokens_map, graph.tokenizer)
        files[names.SPECIAL_TOKENS] = json_bytes(special, indent=indent)
    files |= _template_files(assets)
    if assets.license is not None:
        files[LICENSE] = assets.license
    return files


def base_config(graph: WeightGraph) -> dict[str, Any]:
    """The checkpoint's config without what no artifact shares with it, its text ending where the graph's does."""
    kept = {key: value for key, value in without_null_ids(graph.config.raw).items() if key not in _STALE}
    return {**kept, **graph.stops.single}


def tokenizer_config(assets: Assets, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json as each client reads it, with the templates inlined.

    Transformers.js, and other clients up to 2025, look for templates nowhere else.
    """
    settings = {key: _readable(key, value) for key, value in assets.tokenizer_config.items()}
    written = _listed(settings, tokenizer)
    if written.get("added_tokens_decoder") is None:
        written.pop("added_tokens_decoder", None)  # which no client reads as absent
    else:
        written["added_tokens_decoder"] = _decoder(written["added_tokens_decoder"], tokenizer)
    inlined = _inlined(assets)
    if inlined is not None:
        written["chat_template"] = inlined
    return {**written, "tokenizer_class": _TOKENIZER_CLASS}


def licence_lines(assets: Assets) -> list[str]:
    """What the checkpoint's own card says of its licence, as lines of YAML."""
    lines = (assets.model_card or "").splitlines()
    own = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return [line for line in own if line.startswith("license")]


def json_bytes(value: object, *, indent: int = 2) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()


def _readable(key: str, value: Any) -> Any:
    """A special token given as an object is a bare text to older clients, unless it says that it is a token."""
    if not key.endswith("_token") or not isinstance(value, Mapping) or "__type" in value:
        return value
    text = names.token_text(value)
    return value if text is None else text


def _listed(settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The same, with further special tokens under the names that transformers 4 and 5 both read.

    5 writes a list `extra_special_tokens`, which 4 expects to be an object and else fails on, and the object into a
    field of its own. A token that the tokenizer lacks is left out: a client would add it, with an id of its own.
    """
    kept = {key: found for key, value in settings.items() if (found := _known(key, value, tokenizer)) is not _LOST}
    extra, before = kept.get(names.EXTRA_TOKENS), kept.get(_OLDER)
    if isinstance(extra, list):
        tokens = [*(before if isinstance(before, list) else []), *extra]
        kept[_OLDER] = [token for i, token in enumerate(tokens) if token not in tokens[:i]]
        del kept[names.EXTRA_TOKENS]
    own = kept.get(names.MODEL_TOKENS)
    if isinstance(own, dict) and not kept.get(_OLDER):  # beside an object 5 reads no list
        found = kept.get(names.EXTRA_TOKENS)
        kept[names.EXTRA_TOKENS] = {**own, **(found if isinstance(found, dict) else {})}
        del kept[names.MODEL_TOKENS]
    return kept


def _known(key: str, value: Any, tokenizer: Tokenizer | None) -> Any:
    """A field with special tokens, without those that the tokenizer lacks; `_LOST` if it names no other."""

    def is_lost(token: Any) -> bool:
        text = names.token_text(token)
        return bool(text) and tokenizer is not None and text not in tokenizer.vocab

    if key in (_OLDER, names.EXTRA_TOKENS, names.MODEL_TOKENS):
        if isinstance(value, list):
            return [token for token in value if not is_lost(token)]
        return (
            {name: token for name, token in value.items() if not is_lost(token)} if isinstance(value, dict) else value
        )
    return _LOST if key.endswith("_token") and is_lost(value) else value


def _decoder(found: Any, tokenizer: Tokenizer) -> Any:
    """The listed tokens; with the ids that the tokenizer gives, if some differ."""
    added = {str(token["id"]): token for token in tokenizer.added_tokens}
    if not isinstance(found, dict) or all(
        key in added and token.get("content") == added[key]["content"] for key, token in found.items()
    ):
        return found
    return {key: {name: flag for name, flag in token.items() if name != "id"} for key, token in added.items()}


def _inlined(assets: Assets) -> str | list[dict[str, str]] | None:
    """The templates as tokenizer_config.json holds them: the only one as a text, several as a list."""
    if not assets.named_templates:
        return assets.chat_template
    default = {} if assets.chat_template is None else {names.DEFAULT_TEMPLATE: assets.chat_template}
    return [{"name": name, "template": text} for name, text in {**default, **assets.named_templates}.items()]


def _template_files(assets: Assets) -> dict[str, bytes]:
    """A file for each template. Names that no file should have stay in tokenizer_config.json, and there all of them:
    transformers reads the list only where it finds no file.
    """
    files = {} if assets.chat_template is None else {names.CHAT_TEMPLATE: assets.chat_template.encode()}
    if not all(_is_plain(name) for name in assets.named_templates):
        return {}
    return files | {
        f"{names.NAMED_TEMPLATES}/{name}.jinja": text.encode() for name, text in assets.named_templates.items()
    }


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 100 and _PLAIN.issuperset(name) and not name.startswith(".")
