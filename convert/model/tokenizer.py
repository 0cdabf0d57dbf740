"""The checkpoint's tokenizer: text to ids by the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .config import ModelConfig

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A `tokenizer.json`, parsed lazily.

    `data` is the parsed JSON; ids are those of the file, whatever the embedding's row count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        try:
            self.data: dict[str, Any] = json.loads(self.raw)
            if not isinstance(self.data, dict) or not isinstance(self.data["model"], dict):
                raise ValueError("no 'model' object")
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(f"{path}: not a tokenizer.json: {error}") from None

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
            if type(token_id) is not int or not 0 <= token_id < 2**31:
                raise InputError(f"{self.path}: token {token!r} has id {token_id!r}: expected an integer, zero or more")
            if owners.setdefault(token_id, token) != token:
                raise InputError(f"{self.path}: tokens {owners[token_id]!r} and {token!r} share id {token_id}")
        return vocab

    @property
    def n_tokens(self) -> int:
        """Ids needed: the largest one plus one."""
        return max(self.vocab.values(), default=-1) + 1

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(self.raw.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{self.path}: refused by the tokenizers library: {error}") from None
        backend.no_truncation()  # settings a trainer left in the file; no runtime applies them
        backend.no_padding()
        return backend

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; with `special`, as the post-processor frames it (LFM2: BOS first)."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """The folder's tokenizer, or None if it has none.

    Raises: InputError if it is malformed or has more ids than the embedding has rows.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    tokenizer = Tokenizer(path)
    if tokenizer.n_tokens > config.vocab_size:
        raise InputError(
            f"{path}: has ids up to {tokenizer.n_tokens - 1}: expected ids below vocab_size {config.vocab_size}, "
            "since the embedding has no row for the rest"
        )
    return tokenizer
