"""The checkpoint's tokenizer: text to ids by the `tokenizers` library, chat template in a sandbox."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .config import ModelConfig

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
# Templates print the date; parity needs the same ids every day.
PINNED_DATE = datetime.datetime(2026, 1, 1)

Message = Mapping[str, Any]


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
        return list(self.data.get("added_tokens") or [])

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        model_vocab = self.data["model"].get("vocab")
        if not isinstance(model_vocab, dict):
            raise InputError(f"{self.path}: model.vocab must be an object of token to id")
        return {**model_vocab, **{token["content"]: token["id"] for token in self.added_tokens}}

    @property
    def n_tokens(self) -> int:
        """Ids needed: the largest one plus one."""
        return max(self.vocab.values(), default=-1) + 1

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_str(self.raw.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{self.path}: refused by the tokenizers library: {error}") from None

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
            f"{path}: has ids up to {tokenizer.n_tokens - 1}: expected fewer than vocab_size {config.vocab_size}, "
            "since the embedding has no row for the rest"
        )
    return tokenizer


def render_chat(
    template: str, messages: Sequence[Message], *, bos_token: str, tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """A conversation as the model's chat template writes it, ready for the assistant's turn.

    The template runs in jinja2's immutable sandbox, with `strftime_now` pinned to one date.
    Raises: InputError if the template is malformed or reaches outside the sandbox.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals.update(raise_exception=refuse, strftime_now=PINNED_DATE.strftime)
    try:
        return environment.from_string(template).render(
            messages=list(messages), tools=tools, bos_token=bos_token, add_generation_prompt=True
        )
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"chat template cannot be rendered: {error}") from None
