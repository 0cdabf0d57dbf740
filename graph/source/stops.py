"""Where a text ends: the one owner of a checkpoint's stop ids, for every format and for the validator.

A checkpoint says it in up to four places, which need not agree: generation_config.json, config.json, the tokenizer's
end-of-sequence token, and its chat template, which closes a turn with a token of its own. transformers reads the
first; onnxruntime-genai, ExecuTorch's runner and mlx-lm each read what a converted folder tells them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..config import ModelConfig
from ..errors import InputError
from .assets import GENERATION_CONFIG, Assets
from .chat import try_chats
from .tokenizer import Tokenizer

TOKEN_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Sampling settings that runtimes take from generation_config.json, and refuse a whole folder for when they are text.
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_INTEGERS = ("top_k",)
_FLAGS = ("do_sample",)
_INT32_MAX = 2**31 - 1
# An answer that no template has a reason to change.
_ANSWER = "lfmconvertprobe"
_TURNS = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "Thanks"},
)
# Some templates demand a system message, or contents in parts; the first conversation that they write is asked.
_PROBES = tuple(
    tuple({**turn, "content": [{"type": "text", "text": turn["content"]}]} if in_parts else turn for turn in turns)
    for in_parts in (False, True)
    for turns in (_TURNS, ({"role": "system", "content": "Be brief."}, *_TURNS))
)


@dataclass(frozen=True)
class Stops:
    """`ids` end a text, in the order of the places that name them; `turn` is the one that closes a chat's turn."""

    ids: tuple[int, ...]
    turn: int | None = None

    @property
    def main(self) -> int | None:
        """For readers that know a single id: what ends an answer, else what is named first."""
        return self.turn if self.turn is not None else next(iter(self.ids), None)

    @property
    def single(self) -> dict[str, int]:
        """`eos_token_id` for a config.json: one id, since scripts compare a token with it, which no list equals.

        generation_config.json has them all (`field`), and goes before it in every library.
        """
        return {} if self.main is None else {"eos_token_id": self.main}

    @property
    def field(self) -> dict[str, Any]:
        """`eos_token_id` as JSON files have it: a number, or a list of several; empty without any."""
        return {"eos_token_id": self.ids[0] if len(self.ids) == 1 else list(self.ids)} if self.ids else {}


def find_stops(config: ModelConfig, assets: Assets, tokenizer: Tokenizer | None) -> Stops:
    """Generation config, config, the tokenizer's token, then the end of a turn; each id once.

    The tokenizer tells a stop token from a leftover of another vocabulary, which would cut answers at an ordinary
    word: such an id counts only if there is no other. Without a tokenizer, config.json counts where the generation
    config is silent, as in transformers. The generation config is a `clean_generation`.
    """
    stated = as_ids(assets.generation_config.get("eos_token_id"))
    if tokenizer is None:
        return Stops(_unique(stated or config.eos_token_ids))
    special = special_ids(tokenizer)
    ids = _unique((*stated, *config.eos_token_ids, *_named(assets, tokenizer)))
    known = tuple(i for i in ids if i in special)
    turn = _end_of_turn(assets, tokenizer)
    return Stops(_unique((*(known or ids), *(() if turn is None else (turn,)))), turn)


def stop_notes(config: ModelConfig, assets: Assets, tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """What `find_stops` leaves out of what the files say; renders no template."""
    if tokenizer is None:
        return ()
    special = special_ids(tokenizer)
    stated = _unique((*as_ids(assets.generation_config.get("eos_token_id")), *config.eos_token_ids))
    if special.isdisjoint((*stated, *_named(assets, tokenizer))):
        return ()
    texts = {token_id: text for text, token_id in tokenizer.vocab.items()}
    return tuple(
        f"eos_token_id {i} is {f'the ordinary token {texts[i]!r}' if i in texts else 'no token of the tokenizer'}: "
        "texts are not ended there"
        for i in stated
        if i not in special
    )


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens that stand apart from text."""
    return frozenset(token["id"] for token in tokenizer.added_tokens)


def as_ids(value: Any) -> tuple[int, ...]:
    """The ids of a field: a number, a list, or nothing. What is no integer is no id."""
    found = value if isinstance(value, list | tuple) else (value,)
    return tuple(i for i in found if type(i) is int)


def without_null_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json whose token ids are there or not, but never null."""
    return {key: value for key, value in raw.items() if key not in TOKEN_ID_FIELDS or value is not None}


def clean_generation(generation: Mapping[str, Any], *, vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The generation config without what no runtime can read, and a note on each value that is left out.

    Token ids must be those of the embedding's rows, settings of sampling finite numbers; a null says nothing. Some
    runtimes refuse a whole folder for one of these, others ignore it and never stop.
    """
    kept: dict[str, Any] = {}
    notes = []
    for key, value in generation.items():
        good = _readable(key, value, vocab_size)
        if good is not None or (value is None and key not in TOKEN_ID_FIELDS):
            kept[key] = good
        if value is not None and good != value:
            notes.append(f"{GENERATION_CONFIG}: {key} {value!r} is left out{_expected(key, good, vocab_size)}")
    return kept, tuple(notes)


def _readable(key: str, value: Any, vocab_size: int) -> Any:
    """The value, what is good of a list of ids, or None."""
    if key in TOKEN_ID_FIELDS:
        good = [i for i in as_ids(value) if 0 <= i < vocab_size]
        return (good or None) if isinstance(value, list) else next(iter(good), None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not _is_finite(value):
        return None
    if key in _FLAGS:
        return value if isinstance(value, bool) else None
    if key in _INTEGERS:
        return value if is_number and float(value).is_integer() and abs(value) <= _INT32_MAX else None
    return value if key not in _NUMBERS or is_number else None


def _is_finite(number: float) -> bool:
    """Of a JSON number, which may be larger than any float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _expected(key: str, good: Any, vocab_size: int) -> str:
    if key in TOKEN_ID_FIELDS:
        rest = "" if good is None else f" but for {good}"
        return f"{rest}: expected token ids below vocab_size {vocab_size}"
    return ": expected true or false" if key in _FLAGS else ": expected a finite number"


def _named(assets: Assets, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokenizer's own end-of-sequence token, which files give bare or as an object."""
    found = tokenizer.vocab.get(assets.special_tokens.get("eos_token", ""))
    return () if found is None else (found,)


def _end_of_turn(assets: Assets, tokenizer: Tokenizer) -> int | None:
    """The special token that the chat template writes after an answer; None if it writes none, or fails."""
    if assets.chat_template is None:
        return None
    rest = _after_answer(assets.chat_template, tuple(sorted(assets.special_tokens.items()))).lstrip()
    following = {str(t["content"]): t["id"] for t in tokenizer.added_tokens if t["content"]}
    found = [text for text in following if rest.startswith(text)]
    return following[max(found, key=len)] if found else None


@lru_cache(maxsize=8)
def _after_answer(template: str, special_tokens: tuple[tuple[str, str], ...]) -> str:
    """What follows the assistant's answer in a conversation that goes on; empty for a template that writes none."""
    try:
        texts = try_chats(template, _PROBES, special_tokens=dict(special_tokens))
    except InputError:
        return ""
    written = (text for text in texts if isinstance(text, str) and _ANSWER in text)
    return next(written, "").rpartition(_ANSWER)[2]


def _unique(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))
