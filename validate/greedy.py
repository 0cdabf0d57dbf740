"""How far an artifact's free-running text is the checkpoint's.

The checkpoint is not run freely: one pass over what all artifacts said tells what it would have said at each place, up to
the first where that is something else. A step a token would read all weights of a large model again each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.reference.forward import Forward
from ..graph.reference.state import State
from .prompts import EncodedPrompt
from .reference import batches
from .results import Continuation, GreedyCheck

_EXCERPT_CHARACTERS = 60


@dataclass(frozen=True)
class Choices:
    """What the checkpoint would say next at each place of an artifact's text, and by how much each led. Units: logits."""

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]


def choices(forward: Forward, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> tuple[Choices, ...]:
    """The checkpoint's choices after each prompt and after each token of its text but the last."""
    pairs = list(zip(map(tuple, prompts), map(tuple, texts), strict=True))
    different = list(dict.fromkeys(pairs))  # artifacts of one checkpoint often say the same
    read = [[*prompt, *text[:-1]] for prompt, text in different]
    found = {}
    for batch in batches(read):
        for i, rows in zip(batch, forward.states(State(len(batch)), [read[i] for i in batch]), strict=True):
            logits = forward.head(rows[len(different[i][0]) - 1 :])
            second, first = np.partition(logits, -2, axis=1)[:, -2:].T
            found[different[i]] = Choices(tuple(logits.argmax(axis=1).tolist()), tuple((first - second).tolist()))
    return tuple(found[pair] for pair in pairs)


def compare_greedy(
    prompts: Sequence[EncodedPrompt],
    checkpoint: Sequence[Choices],
    artifact: Sequence[Sequence[int]],
    say: Callable[[Sequence[int]], str],
) -> GreedyCheck:
    """How far greedy texts are what the checkpoint chooses; `say` turns ids into text."""
    shares, continuations = [], []
    for prompt, chosen, tokens in zip(prompts, checkpoint, artifact, strict=True):
        n = len(tokens)
        same = next((i for i in range(n) if chosen.tokens[i] != tokens[i]), n)
        shares.append(same / n)
        texts = say([*tokens[:same], *chosen.tokens[same : same + 1]]), say(tokens)
        split = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        continuations.append(
            Continuation(
                prompt=prompt.id,
                before=say(prompt.token_ids)[-_EXCERPT_CHARACTERS:],
                same=texts[1][:split],
                reference=texts[0][split:],
                artifact=texts[1][split:],
                gap=chosen.gaps[same] if same < n else None,
            )
        )
    return GreedyCheck(
        n_prompts=len(shares),
        n_exact=shares.count(1.0),
        prefix_match=sum(shares) / len(shares),
        gap_at_divergence=max((each.gap for each in continuations if each.gap is not None), default=None),
        continuations=tuple(continuations),
    )
