"""Tokens that stand only beside tokenizer.json: in tokenizer_config.json, special_tokens_map.json, added_tokens.json.

transformers adds them to the vocabulary when it loads a tokenizer, in an order of its own; the `tokenizers` library
gives each the next free id, whatever the file says. Here the same library adds them in the same order.
Source: transformers 5.23 `tokenization_utils_base.py` (`_from_pretrained`), `tokenization_utils_tokenizers.py`
(`__init__`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .assets import ADDED_TOKENS, TOKENIZER_CONFIG, Assets, named_tokens, token_text

if TYPE_CHECKING:
    import tokenizers

_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """One token, with how the library looks for it in a text.

    `stated_id` is what a file says of its id, if it does. `is_described` says that the file also says how the token is
    looked for, so that its word counts before that of tokenizer.json.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False
    stated_id: int | None = None
    is_described: bool = False

    def flags(self) -> dict[str, bool]:
        return {flag: getattr(self, flag) for flag in _FLAGS}


def declared_tokens(assets: Assets) -> tuple[AddedToken, ...]:
    """The tokens that the files beside tokenizer.json declare, in the order in which transformers adds them.

    Raises: InputError for a file that transformers cannot read either.
    """
    settings = assets.tokenizer_settings
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    named = {**dict.fromkeys(_NAMED), **named_tokens(settings)}
    special = [each for each in map(_special, named.values()) if each]
    special += [each for each in map(_special, extra if isinstance(extra, list) else ()) if each]
    if settings.get("added_tokens_decoder") is not None:
        listed = _decoder(settings["added_tokens_decoder"])
    else:
        listed = _legacy(assets.added_tokens, {token.content for token in special})
    found: dict[str, AddedToken] = {}
    for token in (*listed, *special):
        found.setdefault(token.content, token)
    return tuple(found.values())


def merged(
    own: Iterable[Mapping[str, Any]],
    declared: Iterable[AddedToken],
    named: Container[str],
    load: Callable[[], tokenizers.Tokenizer],
    *,
    is_whole: bool,
) -> list[dict[str, Any]] | None:
    """The added tokens of a tokenizer.json after the declared ones were added to it; None if nothing changes.

    `own` are those it has, `named` the texts of special tokens that have a name; `load` gives the library's tokenizer.
    `is_whole` says that the library gives the ids that `own` state.
    """
    from tokenizers import AddedToken as LibraryToken

    present = {str(token["content"]): _of(token) for token in own}
    new = [token for token in declared if _changes(token, present.get(token.content))]
    if not new and is_whole:
        return None
    backend = load()
    flags = [{**token.flags(), "special": token.special or token.content in named} for token in new]
    backend.add_tokens([LibraryToken(token.content, **each) for token, each in zip(new, flags, strict=True)])
    added: list[dict[str, Any]] = json.loads(backend.to_str())["added_tokens"]
    return added


def are_ids_given(own: Iterable[Mapping[str, Any]], vocab: Mapping[str, int]) -> bool:
    """Whether the ids that a tokenizer.json states of its added tokens are those that the library gives them.

    It takes the id of the model's vocabulary, else the one after the last, and a text once.
    Source: tokenizers 0.22 `added_vocabulary.rs`, `add_tokens`.
    """
    given = dict(vocab)
    for token in own:
        text = str(token["content"])
        if token["id"] != given.setdefault(text, len(given)):
            return False
    return True


def _changes(token: AddedToken, present: AddedToken | None) -> bool:
    return present is None or (token.is_described and token.flags() != present.flags())


def _of(token: Mapping[str, Any]) -> AddedToken:
    flags = {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}
    return AddedToken(content=str(token["content"]), **flags)


def _special(token: Any) -> AddedToken | None:
    """A token that is special because of where it stands."""
    text = token_text(token)
    if not text:
        return None
    return replace(_of(token if isinstance(token, Mapping) else {"content": text}), special=True)


def _decoder(found: Any) -> list[AddedToken]:
    """`added_tokens_decoder`: id to token, in the order of ids."""
    if not isinstance(found, dict) or not all(_is_entry(key, value) for key, value in found.items()):
        raise InputError(f"{TOKENIZER_CONFIG}: added_tokens_decoder must be an object of id to token with its content")
    by_id = sorted((int(key), value) for key, value in found.items() if value["content"])
    return [replace(_described(value), stated_id=i, is_described=True) for i, value in by_id]


def _described(token: Mapping[str, Any]) -> AddedToken:
    """As the library's constructor reads it: a token is normalised unless it is special, or the file says so."""
    return _of({"normalized": not token.get("special"), **token})


def _is_entry(key: str, value: Any) -> bool:
    return key.isdecimal() and isinstance(value, dict) and isinstance(value.get("content"), str)


def _legacy(found: Mapping[str, Any], special: set[str]) -> list[AddedToken]:
    """`added_tokens.json`: token to id."""
    if not all(type(i) is int and i >= 0 for i in found.values()):
        raise InputError(f"{ADDED_TOKENS}: must be an object of token to id")
    by_id = sorted((i, text) for text, i in found.items() if text)
    return [
        AddedToken(content=text, normalized=text not in special, special=text in special, stated_id=i)
        for i, text in by_id
    ]
