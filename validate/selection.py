"""Which prompts of a set each part of a validation runs again: few, of different lengths, none costly."""

from __future__ import annotations

from collections.abc import Sequence

from .probes import LONG_CHUNKS, MIXED_CHUNKS
from .prompts import EncodedPrompt

_N_CACHE_PROMPTS = 2
_N_GREEDY_PROMPTS = 4
_PROBE_MAX_TOKENS = 128
_PROBE_TOKENS = 512


def cache_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """Two short prompts that hold the mixed chunks and a token more, and one that holds the long chunks if any does."""
    return (*_spread(prompts, _N_CACHE_PROMPTS, least=sum(MIXED_CHUNKS) + 1), *_longest(prompts))


def greedy_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """Those that are continued freely."""
    return _spread(prompts, _N_GREEDY_PROMPTS, least=1)


def _spread(prompts: Sequence[EncodedPrompt], n: int, *, least: int) -> tuple[int, ...]:
    """Indices of up to n prompts of different lengths, none so long that running it again costs much."""
    fit = [i for i, prompt in enumerate(prompts) if least <= len(prompt.token_ids) <= _PROBE_MAX_TOKENS]
    by_length = sorted(fit, key=lambda i: len(prompts[i].token_ids))
    return tuple(by_length[(2 * k + 1) * len(fit) // (2 * n)] for k in range(min(n, len(fit))))


def _longest(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """The shortest prompt that the long chunks of the cache check fit in, if there is one."""
    long = [i for i, prompt in enumerate(prompts) if len(prompt.token_ids) > sum(LONG_CHUNKS)]
    return tuple(sorted(long, key=lambda i: len(prompts[i].token_ids))[:1])


def probe_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """Prompts, longest first among those that are not too long, up to a number of tokens; the shortest at least.

    What a runtime computes does not depend on the text, so that a few hundred positions tell it from quantisation.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
    chosen, room = [], _PROBE_TOKENS
    for i in order:
        n = len(prompts[i].token_ids)
        if n <= min(room, _PROBE_MAX_TOKENS):
            chosen.append(i)
            room -= n
    return tuple(sorted(chosen or order[-1:]))
