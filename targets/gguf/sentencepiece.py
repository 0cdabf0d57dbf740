"""Vocabularies of SentencePiece, which llama.cpp merges by the score of what comes out: BPE with a token for each byte.

| of                         | come                                                                              |
|----------------------------|-----------------------------------------------------------------------------------|
| tokenizer.json             | tokens, added tokens, and the space that is put before a text                       |
| tokenizer.model beside it  | scores and kinds, if its pieces are the tokens                                      |
| else the order of merges   | scores: SentencePiece gives the first piece that it learns 0, each next one 1 less   |

llama.cpp merges whatever two neighbours make a token, tokenizer.json only the pairs that it lists: the second is written
only where it lists them all.
Source: llama.cpp `conversion/base.py` (`_create_vocab_sentencepiece`), `src/llama-vocab.cpp`
(`llm_tokenizer_spm_session`); SentencePiece `src/bpe_model_trainer.cc`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ...graph.errors import BackendError, InputError
from ...graph.source.tokenizer import Tokenizer
from .token_types import UNUSED_TOKEN, WORD_START, TokenType, added_token

MODEL_FILE = "tokenizer.model"
_PIP = 'pip install "lfm-convert[gguf]"'
_UNUSED_SCORE, _ADDED_SCORE = -10_000.0, -1_000.0
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}


class Piece(NamedTuple):
    """One row of the embedding as llama.cpp knows it."""

    text: str
    score: float
    type: TokenType


def is_sentencepiece(tokenizer: Tokenizer) -> bool:
    """Whether characters without a token become bytes, as in a vocabulary of SentencePiece."""
    model = tokenizer.data["model"]
    is_byte_level = any(step.get("type") == "ByteLevel" for step in tokenizer.cuts)
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and not is_byte_level


def pieces(tokenizer: Tokenizer, n_rows: int) -> list[Piece]:
    """A piece for each row of the embedding.

    Raises: InputError for a tokenizer that llama.cpp would not follow; BackendError without the library that reads
    tokenizer.model.
    """
    own = _own_pieces(tokenizer)
    found = [own.get(i) or Piece(UNUSED_TOKEN.format(i=i), _UNUSED_SCORE, TokenType.UNUSED) for i in range(n_rows)]
    for token in tokenizer.added_tokens:
        text, kind = added_token(token)
        found[token["id"]] = Piece(text, _ADDED_SCORE, kind)
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - {piece.text for piece in found} - _plain_bytes(found)
    if missing:
        raise InputError(
            f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: it has byte_fallback and no token "
            f"for {len(missing)} of the 256 bytes, {min(missing)} the first"
        )
    return found


def puts_space(tokenizer: Tokenizer) -> bool:
    """Whether a text is read as if a space stood before it.

    Raises: InputError for a text that is changed or cut in any other way: llama.cpp only writes spaces as `▁`.
    """
    steps, cuts = tokenizer.normalizers, tokenizer.cuts
    # With no space left this cuts nowhere; converters of transformers write it.
    is_whole = all(step.get("type") == "Split" and step["pattern"] == {"String": " "} for step in cuts)
    is_prefixed = steps[:1] == [{"type": "Prepend", "prepend": WORD_START}]
    if not is_whole or steps[is_prefixed:] != [_ESCAPE]:
        kinds, cut = ([str(step.get("type")) for step in each] for each in (steps, cuts))
        raise InputError(
            f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: expected one with byte_fallback that "
            f"only writes spaces as '{WORD_START}', found normalizer {' and '.join(kinds) or None} and pre_tokenizer "
            f"{' and '.join(cut) or None}"
        )
    return is_prefixed


def _own_pieces(tokenizer: Tokenizer) -> dict[int, Piece]:
    """By id, without what the added tokens change."""
    vocab: Mapping[str, int] = tokenizer.data["model"]["vocab"]
    listed = _listed(tokenizer, vocab) if tokenizer.is_file else None
    if listed is not None:
        return listed
    unknown, scores = tokenizer.data["model"].get("unk_token"), _scores(tokenizer)
    return {i: Piece(text, scores.get(text, 0.0), _type(text, unknown)) for text, i in vocab.items()}


def _type(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def _plain_bytes(found: Sequence[Piece]) -> set[str]:
    """Names of the bytes that are tokens as themselves: llama.cpp takes those where the named ones are missing."""
    return {f"<0x{ord(piece.text):02X}>" for piece in found if len(piece.text) == 1 and piece.text.isascii()}


def _listed(tokenizer: Tokenizer, vocab: Mapping[str, int]) -> dict[int, Piece] | None:
    """The pieces of a tokenizer.model by id; None if there is none, or it is of another vocabulary."""
    path = tokenizer.path.with_name(MODEL_FILE)
    if not path.is_file():
        return None
    texts = {i: text for text, i in vocab.items()}
    found, added = dict(enumerate(_read(path))), {token["id"] for token in tokenizer.added_tokens}
    known = found.keys() | added
    return (
        found if texts.keys() <= known and all(_is_same(texts.get(i), found[i]) for i in found.keys() - added) else None
    )


def _is_same(text: str | None, piece: Piece) -> bool:
    """Whether a token is a piece: transformers writes a byte that merges need, the tabulator, as itself."""
    byte = _BYTE.fullmatch(piece.text)
    return text == piece.text or (byte is not None and text == chr(int(byte[1], 16)))


def _read(path: Path) -> Iterator[Piece]:
    """The pieces of a tokenizer.model, in order of their ids."""
    try:
        import sentencepiece
    except ImportError:
        raise BackendError(f"reading {path} needs sentencepiece: {_PIP}") from None
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path}: not a model of SentencePiece: {error}") from None
    kinds = (
        (model.IsUnknown, TokenType.UNKNOWN),
        (model.IsControl, TokenType.CONTROL),
        (model.IsUnused, TokenType.UNUSED),
        (model.IsByte, TokenType.BYTE),
    )
    for i in range(model.GetPieceSize()):
        kind = next((kind for is_it, kind in kinds if is_it(i)), TokenType.NORMAL)
        yield Piece(model.IdToPiece(i), model.GetScore(i), kind)


def _scores(tokenizer: Tokenizer) -> dict[str, float]:
    """By token, from the order of the merges. What stands apart from text comes out of none.

    Raises: InputError for merges whose order no scores have.
    """
    vocab = tokenizer.data["model"]["vocab"]
    apart = {str(token["content"]) for token in tokenizer.added_tokens} | {tokenizer.data["model"].get("unk_token")}
    plain = {text: i for text, i in vocab.items() if text not in apart and not _BYTE.fullmatch(text)}
    merges = [pair for pair in tokenizer.merges if "".join(pair) in plain]
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        text = left + right
        # Of a run of one character each way gives the longest token from the left on.
        if text != last and text in ranks and len(set(text)) > 1:
            _refuse(tokenizer, f"the merges of {text!r:.40} stand apart")
        ranks.setdefault(text, len(ranks))
        last = text
    listed = frozenset(merges)
    unlisted = next((pair for pair in splits(plain) if pair not in listed), None)
    if unlisted is not None:
        _refuse(tokenizer, f"{unlisted[0]!r:.40} and {unlisted[1]!r:.40} are not merged, though both make a token")
    for text in sorted(plain, key=plain.__getitem__):
        ranks.setdefault(text, len(ranks))
    return {text: -float(rank) for text, rank in ranks.items()}


def splits(vocab: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every two tokens that make a third, in the order of the third ones."""
    lengths = {len(text) for text in vocab}
    for text in vocab:
        for i in range(1, len(text)):
            if i in lengths and len(text) - i in lengths and text[:i] in vocab and text[i:] in vocab:
                yield text[:i], text[i:]


def _refuse(tokenizer: Tokenizer, found: str) -> NoReturn:
    raise InputError(
        f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: with byte_fallback it merges by the score of "
        f"what comes out, as SentencePiece does, and here {found}; choose another target"
    )
