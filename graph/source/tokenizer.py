"""The checkpoint's tokenizer: text to ids by the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..errors import InputError
from ..json_text import parse_json
from .added_tokens import AddedToken, are_ids_given, declared_tokens, merged
from .assets import Assets

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"


# Files of tokenizers that only a class of transformers reads, from which it can write a tokenizer.json.
_SLOW_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "tiktoken.model")


class Tokenizer:
    """A `tokenizer.json`, parsed lazily, with the tokens that the files beside it declare.

    `raw` and `data` are the file and its parsed JSON; with declared tokens that it lacks, as it would be with them. One
    that is given as `raw` is part of the file at `path`, or was made from it.
    Ids are those the library gives, whatever the embedding's row count: an added token that is not in the model's
    vocabulary gets the next free id, whatever the file says.
    """

    def __init__(
        self,
        path: Path,
        *,
        raw: bytes | None = None,
        declared: Sequence[AddedToken] = (),
        named: frozenset[str] = frozenset(),
    ) -> None:
        self.path, self._given = path, raw
        self.raw = path.read_bytes() if raw is None else raw
        try:
            self.data: dict[str, Any] = parse_json(self.raw)
            if not isinstance(self.data, dict) or not isinstance(self.data["model"], dict):
                raise ValueError("no 'model' object")
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(f"{path}: not a tokenizer.json: {error}") from None
        self._own = self.added_tokens
        for token in self._own:
            self._check_id(str(token["content"]), token["id"])
        self._add(declared, named)

    def _add(self, declared: Sequence[AddedToken], named: frozenset[str]) -> None:
        vocab = self.data["model"].get("vocab")
        is_whole = are_ids_given(self._own, vocab if isinstance(vocab, dict) else {})
        added = merged(self._own, declared, named, lambda: self._load(self.raw), is_whole=is_whole)
        if added is None:
            return
        self.data = {**self.data, "added_tokens": added}
        self.raw = (json.dumps(self.data, indent=2, ensure_ascii=False) + "\n").encode()
        del self.added_tokens  # cached for the file as it was

    def with_tokens(self, declared: Sequence[AddedToken], named: frozenset[str]) -> Tokenizer:
        """The same file with other declared tokens."""
        return Tokenizer(self.path, raw=self._given, declared=declared, named=named)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    @cached_property
    def added_tokens(self) -> list[dict[str, Any]]:
        """The special and user-defined tokens, each with at least `content` and `id`."""
        found = self.data.get("added_tokens") or []
        if not isinstance(found, list) or not all(isinstance(t, dict) and {"content", "id"} <= t.keys() for t in found):
            raise InputError(f"{self.path}: added_tokens must be a list of objects with content and id")
        return found

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Token to id, added tokens included.

        Raises: InputError for an id that is no id, or two tokens on one id.
        """
        model_vocab = self.data["model"].get("vocab")
        if not isinstance(model_vocab, dict):
            raise InputError(f"{self.path}: model.vocab must be an object of token to id")
        vocab = {**model_vocab, **{str(token["content"]): token["id"] for token in self.added_tokens}}
        owners: dict[int, str] = {}
        for token, token_id in vocab.items():
            self._check_id(token, token_id)
            if owners.setdefault(token_id, token) != token:
                raise InputError(
                    f"{self.path}: tokens {owners[token_id]!r} and {token!r} share id {token_id}{self._why(token)}"
                )
        return vocab

    def _check_id(self, token: str, token_id: object) -> None:
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise InputError(f"{self.path}: token {token!r} has id {token_id!r}: expected an integer, zero or more")

    def _why(self, token: str) -> str:
        """Of an id that is not the file's, in brackets."""
        stated = next((own["id"] for own in self._own if own["content"] == token), None)
        if stated in (None, self.data["model"]["vocab"].get(token)) or self.added_tokens is self._own:
            return ""
        return f" (the file says {stated}, the library gives a token that model.vocab lacks the next free id)"

    @property
    def moved(self) -> list[AddedToken]:
        """The file's own tokens that have another id than it says."""
        stated = (AddedToken(content=str(token["content"]), stated_id=token["id"]) for token in self._own)
        return [token for token in stated if self.vocab[token.content] != token.stated_id]

    @property
    def is_file(self) -> bool:
        """Whether it stands in a file of its own, so that what lies beside it may belong to it."""
        return self._given is None

    @property
    def normalizers(self) -> list[Mapping[str, Any]]:
        """What a text goes through before it is cut, step by step."""
        return _steps(self.data.get("normalizer"), "normalizers")

    @property
    def cuts(self) -> list[Mapping[str, Any]]:
        """How a text is cut before its pieces are merged, step by step."""
        return _steps(self.data.get("pre_tokenizer"), "pretokenizers")

    @property
    def is_composed(self) -> bool:
        """Whether texts are brought into form NFC, and that is all."""
        return {step.get("type") for step in self.normalizers} == {"NFC"}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs of a BPE, first the ones that are merged first; files have them as such, or as texts with a space."""
        found = self.data["model"].get("merges") or []
        pairs = ((pair.split(" ") if isinstance(pair, str) else pair) for pair in found)
        return [(left, right) for left, right in pairs]

    @cached_property
    def has_merges_of_all(self) -> bool:
        """Whether the merges give each of the model's tokens: then it is all the same if a piece that is one is merged."""
        model = self._load(self.raw).model
        model.ignore_merges = False
        added = {str(token["content"]) for token in self.added_tokens}
        return all(len(model.tokenize(text)) == 1 for text in self.data["model"]["vocab"].keys() - added)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The ids with which it begins every text by itself: BOS, or none."""
        plain, whole = self.encode("a", special=False), self.encode("a")
        starts = range(len(whole) - len(plain) + 1)
        return tuple(next((whole[:i] for i in starts if whole[i : i + len(plain)] == plain), ()))

    @property
    def n_tokens(self) -> int:
        """Ids needed: the largest one plus one."""
        return max(self.vocab.values(), default=-1) + 1

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        backend = self._load(self.raw)
        backend.no_truncation()  # settings a trainer left in the file; no runtime applies them
        backend.no_padding()
        if hasattr(backend.model, "dropout"):
            backend.model.dropout = None  # a text has the same ids each time
        return backend

    def _load(self, raw: bytes) -> tokenizers.Tokenizer:
        import tokenizers

        with self._refused():
            return tokenizers.Tokenizer.from_buffer(raw)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """What the library raises as one sentence: plain Exception, and for what it never thought of a panic, which is
        none and has no public name.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InputError(f"{self.path}: refused by the tokenizers library: {error}") from None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with `special`, as the post-processor frames it."""
        with self._refused():
            return list(self.backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def _steps(declared: Mapping[str, Any] | None, field: str) -> list[Mapping[str, Any]]:
    """The steps of a part of a tokenizer.json, which may be a sequence of sequences."""
    if not declared:
        return []
    return [step for each in declared[field] for step in _steps(each, field)] if field in declared else [declared]


def read_tokenizer(
    folder: Path, config: ModelConfig, assets: Assets | None = None, *, note: Callable[[str], None] = lambda _: None
) -> Tokenizer | None:
    """The folder's tokenizer with the tokens that `assets` declare, or None if it has none.

    `note` is told what of the declarations does not hold.
    Raises: InputError if it is malformed or has more ids than the embedding has rows.
    """
    path = folder / TOKENIZER_FILE
    return settle_tokenizer(Tokenizer(path), config, assets, note=note) if path.is_file() else None


def settle_tokenizer(
    tokenizer: Tokenizer, config: ModelConfig, assets: Assets | None, *, note: Callable[[str], None]
) -> Tokenizer:
    """A tokenizer with the tokens that `assets` declare. Raises and notes: as `read_tokenizer`."""
    if tokenizer.n_tokens > config.vocab_size:
        raise InputError(
            f"{tokenizer.path}: has ids up to {tokenizer.n_tokens - 1}: expected ids below vocab_size {config.vocab_size}, "
            "since the embedding has no row for the rest"
        )
    return tokenizer if assets is None else _with_declared(tokenizer, config, assets, note)


def _with_declared(tokenizer: Tokenizer, config: ModelConfig, assets: Assets, note: Callable[[str], None]) -> Tokenizer:
    """The tokenizer with the declared tokens for which the embedding has a row."""
    declared, named = declared_tokens(assets), frozenset(assets.special_tokens.values())
    found = tokenizer.with_tokens(declared, named)
    lost = [token for token in declared if found.vocab[token.content] >= config.vocab_size]
    if lost:
        note(
            f"{_listed(lost)} stands beside tokenizer.json only and would have an id from {config.vocab_size} on, for "
            "which the embedding has no row: left out"
        )
        kept = [token for token in declared if token not in lost]
        found = tokenizer.with_tokens(kept, named)
    new = [token for token in declared if token.content not in tokenizer.vocab and token.content in found.vocab]
    moved = [token for token in new if token.stated_id not in (None, found.vocab[token.content])] or tokenizer.moved
    if moved:
        first = moved[0]
        note(
            f"{_listed(moved)} is said to have id {first.stated_id}, and gets {found.vocab[first.content]}, the next "
            "free one, as in transformers"
        )
    return found


def _listed(tokens: Sequence[AddedToken]) -> str:
    return f"token {tokens[0].content!r}" + (f" with {len(tokens) - 1} more" if len(tokens) > 1 else "")


def missing_tokenizer(folder: Path) -> str:
    """What it means that a folder has no tokenizer.json, and what it has instead."""
    slow = [name for name in _SLOW_FILES if (folder / name).is_file()]
    hint = (
        f"; {' and '.join(slow)} can be saved as one: AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers"
        if slow
        else ""
    )
    return f"{folder} has no {TOKENIZER_FILE}: artifacts take token ids only, and no text is compared{hint}"
