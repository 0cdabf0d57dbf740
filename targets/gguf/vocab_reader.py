"""The tokenizer of a GGUF as a tokenizer.json and the settings beside it: the inverse of what `vocab` writes.

| of tokenizer.json | is                                                                                        |
|-------------------|-------------------------------------------------------------------------------------------|
| model.vocab       | every token but those that only fill rows, so that each has its id whoever adds it          |
| added_tokens      | tokens of type control, which are special, and user-defined                                 |
| pre_tokenizer     | the expressions that llama.cpp cuts by under the file's name of them, then bytes            |
| model.merges      | the file's; of a vocabulary with scores, every two tokens that make a third                 |
| post_processor    | what the file says is put before and after a text                                           |

Source: as `vocab`; transformers `integrations/ggml.py` for what others make of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...graph.errors import Faults, InputError
from ...quantize.gguf_file.header import ValueType
from .metadata import SAMPLING, SAMPLING_KEY
from .pre_tokenizers import PreTokenizer, cutting_called, known_names
from .token_types import TokenType
from .tokenizer_json import SPECIAL, Listed, byte_level, framed, scored
from .vocab import (
    ADDS,
    BPE,
    ENDS_BY_TEXT,
    MERGES,
    MODEL,
    NO_VOCABULARY,
    PRE,
    SCORES,
    SENTENCEPIECE,
    SPACE_PREFIX,
    SPECIAL_IDS,
    TEMPLATE,
    TEMPLATE_NAMES,
    TOKEN_TYPES,
    TOKENS,
    TURN_ENDS,
)


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
    if kind not in (BPE, SENTENCEPIECE):
        raise InputError(
            f"{where}: {MODEL} is {kind!r:.40}: expected '{BPE}', byte-level BPE, or '{SENTENCEPIECE}', SentencePiece's"
        )
    read = _Reader(said, Faults())
    listed = Listed(tokens=read.tokens(), types=read.types())
    special = read.special(len(listed.tokens))
    cutting = read.cutting() if kind == BPE else None
    merges, scores = (read.merges(), []) if kind == BPE else ([], read.scores())
    begins = cutting[1].begins if cutting else True
    templates, puts_space = read.templates(), read.flag(SPACE_PREFIX, kind == SENTENCEPIECE)
    frames = {"bos": read.flag(ADDS.format(kind="bos"), begins), "eos": read.flag(ADDS.format(kind="eos"), False)}
    read.faults.raise_if_any(str(where))
    texts = {kind: listed.tokens[i] for kind, i in special.items()}
    framing = framed(frames, texts, special)
    return Vocabulary(
        tokenizer=byte_level(listed, merges, *cutting, framing)
        if cutting
        else scored(listed, scores, framing, puts_space=puts_space),
        special=special,
        stops=_stops(said, special, listed),
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

    def scores(self) -> list[float]:
        n_tokens, found = len(self.said.get(TOKENS) or ()), self.items(SCORES, float)
        if len(found) != n_tokens:
            self.faults.add(f"{SCORES} has {len(found)} entries, {TOKENS} {n_tokens}")
        return found

    def cutting(self) -> tuple[Sequence[str], PreTokenizer] | None:
        name = self.said.get(PRE)
        found = cutting_called(str(name))
        if found is None:
            self.faults.add(
                f"{PRE} is {name!r:.40}: expected {', '.join(known_names())}, whose expression is known here"
            )
        return found

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


def _stops(said: Mapping[str, Any], special: Mapping[str, int], listed: Listed) -> list[int]:
    """Its end of a sequence, then those that end a turn, then what llama.cpp knows by its text.

    Of the last, only what stands apart from text: a vocabulary may have `</s>` as a word of HTML.
    """
    added = listed.added
    named = [special.get("eos"), *(said.get(key) for key in TURN_ENDS)]
    known = [i for i in named if type(i) is int and i in added]
    by_text = (i for i, text in added.items() if text in ENDS_BY_TEXT and listed.types[i] in SPECIAL)
    return list(dict.fromkeys([*known, *by_text]))


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of generation_config.json, each under the name that transformers knows, which only uses them if it samples."""
    found = {
        names[-1]: float(f"{value:.7g}") if kind is ValueType.FLOAT32 else value
        for key, (kind, names) in SAMPLING.items()
        if isinstance(value := said.get(SAMPLING_KEY + key), str if kind is ValueType.STRING else int | float)
        and not isinstance(value, bool)
    }
    return {"do_sample": True, **found} if found.get("temperature") else found
