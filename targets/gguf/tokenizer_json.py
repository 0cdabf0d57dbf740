"""A tokenizer.json that does what llama.cpp does with a vocabulary: byte-level BPE, or SentencePiece's with a score each.

How an added token takes the spaces around it, and whether it is normalised, no GGUF says: neither is llama.cpp's way.
Source: as `vocab`; transformers `convert_slow_tokenizer.py` (`generate_merges`) for the pairs of a vocabulary with scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .pre_tokenizers import PreTokenizer
from .sentencepiece import splits
from .token_types import UNUSED_TOKEN, WORD_START, TokenType

SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_ADDED = (*SPECIAL, TokenType.USER_DEFINED)
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The tokens of a file, with the type of each."""

    tokens: Sequence[str]
    types: Sequence[int]

    @property
    def added(self) -> dict[int, str]:
        """Tokens that stand apart from text, or are looked for in it before all others, by id."""
        return {i: text for i, text in enumerate(self.tokens) if self.types[i] in _ADDED}

    @property
    def vocab(self) -> dict[str, int]:
        """Every token but those that only fill rows, so that each has its id whoever adds it."""
        filled = {UNUSED_TOKEN.format(i=i) for i, kind in enumerate(self.types) if kind == TokenType.UNUSED}
        return {text: i for i, text in enumerate(self.tokens) if text not in filled}


def byte_level(
    listed: Listed,
    merges: Sequence[Sequence[str]],
    expressions: Sequence[str],
    known: PreTokenizer,
    framing: Mapping[str, Any] | None,
) -> bytes:
    """Cut by expressions, each in the pieces of those before it."""
    cuts = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in expressions
    ]
    return _written(
        listed,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*cuts, _BYTE_LEVEL]},
        framing=framing,
        decoder=_BYTE_LEVEL,
        model={"ignore_merges": known.takes_whole, "merges": [list(pair) for pair in merges]},
    )


def scored(listed: Listed, scores: Sequence[float], framing: Mapping[str, Any] | None, *, puts_space: bool) -> bytes:
    """Merged by the score of what comes out, with a token for each byte."""
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}
    unescape = {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}
    prefix = [{"type": "Prepend", "prepend": WORD_START}] if puts_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if puts_space else []
    unknown = next((text for i, text in listed.added.items() if listed.types[i] == TokenType.UNKNOWN), None)
    return _written(
        listed,
        normalizer={"type": "Sequence", "normalizers": [*prefix, escape]} if puts_space else escape,
        pre_tokenizer=None,
        framing=framing,
        decoder={"type": "Sequence", "decoders": [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        model={"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "merges": _pairs(listed, scores)},
    )


def framed(frames: Mapping[str, bool], texts: Mapping[str, str], ids: Mapping[str, int]) -> dict[str, Any] | None:
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


def _pairs(listed: Listed, scores: Sequence[float]) -> list[list[str]]:
    """Every two tokens that make a third, those of the highest score first.

    Tokens that stand apart from text come out of no merge, and no other is made of them.
    """
    plain = (i for i, kind in enumerate(listed.types) if kind == TokenType.NORMAL)
    by_score = {listed.tokens[i]: i for i in sorted(plain, key=lambda i: (-scores[i], i))}
    return [list(pair) for pair in splits(by_score)]


def _written(
    listed: Listed,
    *,
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    framing: Mapping[str, Any] | None,
    decoder: Mapping[str, Any],
    model: Mapping[str, Any],
) -> bytes:
    added = [
        {"id": i, "content": text, **_FLAGS, "special": listed.types[i] in SPECIAL} for i, text in listed.added.items()
    ]
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": listed.vocab,
    }
    written = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": framing,
        "decoder": decoder,
        "model": {**plain, **model},
    }
    return (json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode()
