"""What every way of running llama.cpp shares: conversations that outgrow their context, and prompts side by side."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from ...graph.dtypes import Float32
from ...graph.errors import UsageError
from ..target import Runner

BATCH = 256  # tokens a decode call: bounds the logits llama.cpp holds
_FIRST_CONTEXT = 1024

# A sequence's next tokens, and the position of the first.
Piece = tuple[int, Sequence[int]]


class LlamaConversation(Runner):
    """One conversation at a time in a context of llama.cpp's, which a runner makes by `_open`."""

    batches: Sequence[str] = ("together",)
    n_vocab: int
    # A context of more tokens than this has another rope: texts that fit have one that is no larger.
    longer_than: int | None = None
    _seen: list[int]
    _context: int | None
    _capacity: int

    def __init__(self) -> None:
        self._others: list[Self] = []
        self._expected = _FIRST_CONTEXT
        self._forget()

    @abstractmethod
    def _open(self, n_tokens: int, *, n_sequences: int = 1) -> int:
        """An empty context for that many tokens."""

    @abstractmethod
    def _free(self, context: int) -> None:
        """Gives back a context."""

    @abstractmethod
    def _decode(self, context: int, pieces: Sequence[Piece]) -> Float32:
        """Logits [n, V] of the next tokens of each sequence, one sequence after the other; `BATCH` tokens at the most."""

    def extend(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.extend`. Raises UsageError for an id outside the vocabulary or no ids at all."""
        return np.concatenate(list(self._portions(token_ids)))

    def last_logits(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.last_logits`. Raises: as `extend`."""
        self.reset()
        for logits in self._portions(token_ids):
            last: Float32 = logits[-1]
        return last

    def _portions(self, token_ids: Sequence[int]) -> Iterator[Float32]:
        """Continues the conversation, as many tokens at a time as a call takes; their logits."""
        ids = list(token_ids)
        if not ids or min(ids) < 0 or max(ids) >= self.n_vocab:
            raise UsageError(f"token ids must be one or more of 0 … {self.n_vocab - 1}")
        context = self._reserve(len(self._seen) + len(ids))
        for piece in _pieces(ids, start=len(self._seen)):
            yield self._decode(context, [piece])
        self._seen += ids

    def expect(self, n_tokens: int) -> None:
        self._expected = max(self._expected, n_tokens)

    def reset(self) -> None:
        self._seen = []
        if self._context is not None and self._capacity != self._room(1, self._capacity):
            self._leave()
        elif self._context is not None:
            self._clear(self._context)

    def _leave(self) -> None:
        """Ends the conversation; the next has a new context."""
        if self._context is not None:
            self._free(self._context)
        self._forget()

    def another(self) -> Self:
        """The same weights with a context of its own."""
        other = copy.copy(self)
        other._forget()
        self._others.append(other)
        return other

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Sequences of one context, decoded `together`: the first halves of all in one call, then the second."""
        found: list[list[Float32]] = [[] for _ in prompts]
        with self._own_context(sum(map(len, prompts)), n_sequences=len(prompts)) as context:
            for half in (0, 1):
                pieces = [_half(prompt, half) for prompt in prompts]
                rows = self._decode(context, pieces)
                ends = np.cumsum([len(ids) for _, ids in pieces])
                for kept, values in zip(found, np.split(rows, ends), strict=False):
                    kept.append(values)
        return [np.concatenate(halves) for halves in found]

    def _forget(self) -> None:
        self._seen, self._context, self._capacity = [], None, 0

    def _clear(self, context: int) -> None:
        """Empties the conversation's context. Where llama.cpp's own call is out of reach, the next has a new one."""
        self._free(context)
        self._context, self._capacity = None, 0

    def _reserve(self, n_tokens: int) -> int:
        """A context with room for a conversation of that length; one outgrown is replayed in a larger."""
        if self._context is not None and n_tokens <= self._capacity:
            return self._context
        if self._context is not None:
            self._free(self._context)
        self._capacity = self._room(n_tokens, max(self._expected, 2 * self._capacity, n_tokens))
        self._context = self._open(self._capacity)
        for piece in _pieces(self._seen, start=0):
            self._decode(self._context, [piece])
        return self._context

    def _room(self, n_tokens: int, wanted: int) -> int:
        """The size of a context for so many tokens."""
        limit = self.longer_than
        return wanted if limit is None or n_tokens > limit else min(wanted, limit)

    @contextmanager
    def _own_context(self, n_tokens: int, **options: Any) -> Iterator[int]:
        """A context beside that of the conversation."""
        context = self._open(self._room(n_tokens, max(n_tokens, _FIRST_CONTEXT)), **options)
        try:
            yield context
        finally:
            self._free(context)


def _pieces(ids: Sequence[int], *, start: int) -> list[Piece]:
    """Ids in the portions that a call takes; `start` is the position of the first."""
    return [(start + i, ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)]


def _half(ids: Sequence[int], second: int) -> Piece:
    """One half of a prompt, and the position it starts at."""
    middle = len(ids) // 2
    return (middle, ids[middle:]) if second else (0, ids[:middle])
