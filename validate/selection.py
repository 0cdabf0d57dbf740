"""Which prompts of a set each part of a validation runs again: few, of different lengths, none costly."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from .probes import AT_ONCE, LONG_CHUNKS, MIXED_CHUNKS
from .prompts import N_GREEDY_TOKENS, EncodedPrompt

_N_CACHE_PROMPTS = 2
_N_GREEDY_PROMPTS = 4
# Enough for the answers of a model that ends them; one that does not is not waited for.
_N_END_TOKENS = 96
_PROBE_MAX_TOKENS = 128
_PROBE_TOKENS = 512
# Of the beginning of a long prompt: beyond the windows and chunks that runtimes like.
LONG_PROBE_TOKENS = AT_ONCE


def cache_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """Two short prompts that hold the mixed chunks and a token more, and a long one if there is any."""
    return (*_spread(prompts, _N_CACHE_PROMPTS, least=sum(MIXED_CHUNKS) + 1), *_longest(prompts))


def greedy_prompts(prompts: Sequence[EncodedPrompt], end: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Those that are continued freely; `end`, which goes on anyway, takes the place of the one nearest to its length."""
    chosen = _spread(prompts, _N_GREEDY_PROMPTS, least=1)
    if end is None or end[0] in chosen or not chosen:
        return chosen
    sizes = [len(prompt.token_ids) for prompt in prompts]
    nearest = min(chosen, key=lambda i: abs(sizes[i] - sizes[end[0]]))
    return tuple(end[0] if i == nearest else i for i in chosen)


def end_prompt(prompts: Sequence[EncodedPrompt], chats: Container[str]) -> tuple[int, int] | None:
    """The shortest chat and for how many tokens it may go on; None if there is none with room for an answer.

    No longer together than the longest prompt or a greedy run, whatever context an artifact has.
    """
    sizes = [len(prompt.token_ids) for prompt in prompts]
    shortest = min(
        (i for i, prompt in enumerate(prompts) if prompt.id in chats and not prompt.is_cut),
        key=sizes.__getitem__,
        default=None,
    )
    if shortest is None:
        return None
    room = max(*sizes, *(sizes[i] + N_GREEDY_TOKENS for i in greedy_prompts(prompts))) - sizes[shortest]
    return (shortest, min(room, _N_END_TOKENS)) if room > 0 else None


def _spread(prompts: Sequence[EncodedPrompt], n: int, *, least: int) -> tuple[int, ...]:
    """Indices of up to n prompts of different lengths, none so long that running it again costs much."""
    fit = [i for i, prompt in enumerate(prompts) if least <= len(prompt.token_ids) <= _PROBE_MAX_TOKENS]
    by_length = sorted(fit, key=lambda i: len(prompts[i].token_ids))
    return tuple(by_length[(2 * k + 1) * len(fit) // (2 * n)] for k in range(min(n, len(fit))))


def _longest(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """The shortest prompt that the long chunks of the cache check fit in; else the longest that is not run whole."""
    sizes = {i: len(prompt.token_ids) for i, prompt in enumerate(prompts)}
    fit = sorted((i for i, n in sizes.items() if n > sum(LONG_CHUNKS)), key=sizes.__getitem__)
    others = sorted((i for i, n in sizes.items() if n > AT_ONCE), key=sizes.__getitem__, reverse=True)
    return tuple((fit or others)[:1])


def vector_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[EncodedPrompt, ...]:
    """Whole prompts, shortest first, up to a number of tokens, one at least; then the shortest of the long ones.

    A beginning has other vectors than the same tokens of the whole; and the more texts there are, the more their order
    tells.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
    sizes = np.cumsum([len(prompts[i].token_ids) for i in order])
    chosen = order[: max(1, int((sizes <= _PROBE_TOKENS).sum()))]
    long = [i for i in order if len(prompts[i].token_ids) > _PROBE_MAX_TOKENS and i not in chosen]
    return tuple(prompts[i] for i in sorted([*chosen, *long[:1]]))


def probe_prompts(prompts: Sequence[EncodedPrompt]) -> tuple[EncodedPrompt, ...]:
    """Prompts, longest first among those that are not too long, up to a number of tokens, the shortest at least; then
    the beginning of one that is long, if there is one.

    What a runtime computes does not depend on the text, so that a few hundred positions tell it from quantisation; but
    caches and windows show only where a prompt is longer than they are.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
    chosen, room = [], _PROBE_TOKENS
    for i in order:
        n = len(prompts[i].token_ids)
        if n <= min(room, _PROBE_MAX_TOKENS):
            chosen.append(i)
            room -= n
    whole = sorted(chosen or order[-1:])
    long = [i for i in order if len(prompts[i].token_ids) > _PROBE_MAX_TOKENS and i not in whole]
    long.sort(key=lambda i: abs(len(prompts[i].token_ids) - LONG_PROBE_TOKENS))
    beginnings = (prompts[i].cut(LONG_PROBE_TOKENS) for i in long[:1])
    return tuple(replace(prompt, scored=None) for prompt in (*(prompts[i] for i in whole), *beginnings))
