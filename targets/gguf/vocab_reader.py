"""The tokenizer of a GGUF as a tokenizer.json and the settings beside it: the inverse of what `vocab` writes.

| of tokenizer.json | is                                                                                        |
|-------------------|-------------------------------------------------------------------------------------------|
| model.vocab       | every token but those that only fill rows, so that each has its id whoever adds it          |
| added_tokens      | tokens of type control, which are special, and user-defined                                 |
| pre_tokenizer     | the expression that llama.cpp cuts by under the file's name of it, then bytes               |
| post_processor    | what the file says is put before and after a text                                           |

How an added token takes the spaces around it, and whether it is normalised, no GGUF says: neither is llama.cpp's way.
Source: as `vocab`; transformers `integrations/ggml.py` for what others make of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...graph.errors import Faults, InputError
from ...quantize.gguf_file.header import ValueType
from .metadata import SAMPLING, SAMPLING_KEY
from .pre_tokenizers import PRE_TOKENIZERS, split_expression
from .vocab import (
    ADDS,
    BPE,
    ENDS_BY_TEXT,
    MERGES,
    MODEL,
    NO_VOCABULARY,
    PRE,
    SPECIAL_IDS,
    TEMPLATE,
    TEMPLATE_NAMES,
    TOKEN_TYPES,
    TOKENS,
    TURN_ENDS,
    UNUSED_TOKEN,
    TokenType,
)

_UNKNOWN = 2  # `LLAMA_TOKEN_TYPE_UNKNOWN`, which stands for no text
_SPECIAL = (TokenType.CONTROL, _UNKNOWN)
_ADDED = (*_SPECIAL, TokenType.USER_DEFINED)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a file says of text: `tokenizer` is a tokenizer.json, None of a model that takes ids alone.

    `special` are ids by kind, `stops` all ids at which llama.cpp ends a text.
    """

    tokenizer: bytes | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    stops: Sequence[int] = ()
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


def read_vocabulary(said: Mapping[str, Any], where: Path) -> Vocabulary:
    """Raises: InputError for a tokenizer of a kind that is not known here, or keys that are not of their kind."""
    kind = said.get(MODEL, NO_VOCABULARY)
    if kind == NO_VOCABULARY:
        return Vocabulary(generation_config=_sampling(said))
    if kind != BPE:
        raise InputError(f"{where}: {MODEL} is {kind!r:.40}: expected '{BPE}', byte-level BPE")
    read = _Reader(said, Faults())
    tokens, types = read.tokens(), read.types()
    special = read.special(len(tokens))
    pattern = split_expression(str(said.get(PRE)))
    if pattern is None:
        names = ", ".join(dict.fromkeys(PRE_TOKENIZERS.values()))
        read.faults.add(f"{PRE} is {said.get(PRE)!r:.40}: expected {names}, whose expression is known here")
    merges, templates = read.merges(), read.templates()
    frames = {name: read.flag(ADDS.format(kind=name), name == "bos") for name in ("bos", "eos")}
    read.faults.raise_if_any(str(where))
    added = {i: text for i, text in enumerate(tokens) if types[i] in _ADDED}
    texts = {kind: tokens[i] for kind, i in special.items()}
    return Vocabulary(
        tokenizer=_tokenizer_json(tokens, types, added, merges, pattern or "", _framed(frames, texts, special)),
        special=special,
        stops=_stops(said, special, added),
        tokenizer_config={
            **{f"{kind}_token": text for kind, text in texts.items()},
            **{f"add_{kind}_token": is_added for kind, is_added in frames.items()},
            "clean_up_tokenization_spaces": False,
        },
        generation_config=_sampling(said),
        templates=templates,
    )


class _Reader:
    """Typed look-ups in a file's metadata; what is of another kind is a fault."""

    def __init__(self, said: Mapping[str, Any], faults: Faults) -> None:
        self.said, self.faults = said, faults

    def items(self, key: str, kind: type) -> list[Any]:
        found = self.said.get(key, [])
        if isinstance(found, list) and all(type(item) is kind for item in found):
            return found
        self.faults.add(f"{key} is no list of {'texts' if kind is str else 'numbers'}")
        return []

    def flag(self, key: str, default: bool) -> bool:
        found = self.said.get(key, default)
        if not isinstance(found, bool):
            self.faults.add(f"{key} is {found!r:.40}: expected true or false")
        return bool(found)

    def tokens(self) -> list[str]:
        found: list[str] = self.items(TOKENS, str)
        if not found:
            self.faults.add(f"{TOKENS} is missing")
        first: dict[str, int] = {}
        for i, text in enumerate(found):
            if first.setdefault(text, i) != i:
                self.faults.add(f"tokens {first[text]} and {i} are both {text!r:.40}")
        return found

    def types(self) -> list[int]:
        n_tokens, found = len(self.said.get(TOKENS) or ()), self.items(TOKEN_TYPES, int)
        if found and len(found) != n_tokens:
            self.faults.add(f"{TOKEN_TYPES} has {len(found)} entries, {TOKENS} {n_tokens}")
        return found if len(found) == n_tokens else [TokenType.NORMAL] * n_tokens

    def special(self, n_tokens: int) -> dict[str, int]:
        found = {}
        for kind, key in SPECIAL_IDS.items():
            value = self.said.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value < n_tokens:
                self.faults.add(f"{key} is {value!r:.40}: expected an id below {n_tokens}")
            else:
                found[kind] = value
        return found

    def merges(self) -> list[list[str]]:
        pairs = [text.split(" ") for text in self.items(MERGES, str)]
        wrong = next((pair for pair in pairs if len(pair) != 2), None)
        if wrong is not None:
            self.faults.add(f"{MERGES} holds {' '.join(wrong)!r:.40}: expected two tokens with a space between them")
        return pairs

    def templates(self) -> dict[str, str]:
        """By name; the default one is called so."""
        names = {"default": TEMPLATE, **{name: f"{TEMPLATE}.{name}" for name in self.items(TEMPLATE_NAMES, str)}}
        found = {name: self.said.get(key) for name, key in names.items()}
        for name, text in found.items():
            if text is not None and not isinstance(text, str):
                self.faults.add(f"{names[name]} is no text")
        return {name: text for name, text in found.items() if isinstance(text, str) and text}


def _stops(said: Mapping[str, Any], special: Mapping[str, int], added: Mapping[int, str]) -> list[int]:
    """Its end of a sequence, then those that end a turn, then what llama.cpp knows by its text."""
    named = [special.get("eos"), *(said.get(key) for key in TURN_ENDS)]
    known = [i for i in named if type(i) is int and i in added]
    return list(dict.fromkeys([*known, *(i for i, text in added.items() if text in ENDS_BY_TEXT)]))


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of generation_config.json, each under the name that transformers knows, which only uses them if it samples."""
    found = {
        names[-1]: float(f"{value:.7g}") if kind is ValueType.FLOAT32 else value
        for key, (kind, names) in SAMPLING.items()
        if isinstance(value := said.get(SAMPLING_KEY + key), str if kind is ValueType.STRING else int | float)
        and not isinstance(value, bool)
    }
    return {"do_sample": True, **found} if found.get("temperature") else found


def _framed(frames: Mapping[str, bool], texts: Mapping[str, str], ids: Mapping[str, int]) -> dict[str, Any] | None:
    """A post-processor that puts special tokens before and after each text; None if there are none."""
    before, after = (
        [{"SpecialToken": {"id": texts[kind], "type_id": 0}}] if frames[kind] and kind in texts else []
        for kind in ("bos", "eos")
    )
    if not before and not after:
        return None
    first, second = ([*before, {"Sequence": {"id": name, "type_id": 0}}, *after] for name in ("A", "B"))
    used = [kind for kind in ("bos", "eos") if frames[kind] and kind in texts]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {texts[k]: {"id": texts[k], "ids": [ids[k]], "tokens": [texts[k]]} for k in used},
    }


def _tokenizer_json(
    tokens: Sequence[str],
    types: Sequence[int],
    added: Mapping[int, str],
    merges: Sequence[Sequence[str]],
    pattern: str,
    framing: Mapping[str, Any] | None,
) -> bytes:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    filled = {UNUSED_TOKEN.format(i=i) for i, kind in enumerate(types) if kind == TokenType.UNUSED}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": types[i] in _SPECIAL} for i, text in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": framing,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as llama.cpp takes a whole piece that is a token
            "vocab": {text: i for i, text in enumerate(tokens) if text not in filled},
            "merges": [list(pair) for pair in merges],
        },
    }
    return (json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode()
