"""Prompts for a checkpoint without a tokenizer: what the model itself says, as token ids.

Ids drawn evenly are nothing a model has ever read, and quantisation hurts there more than it does on text; what the
model draws token by token is as near to its text as ids can come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..graph.graph import WeightGraph
from ..graph.progress import SILENT, Progress
from ..graph.reference.forward import Forward, State
from .prompts import Prompt

# Rows drawn side by side, and tokens of each: the weights of a large model are read once a token.
_ROWS = {"smoke": 12, "standard": 36}
_ROW_TOKENS = 48
_SEED = 14


def sampled_prompts(graph: WeightGraph, *, suite: str = "standard", progress: Progress = SILENT) -> tuple[Prompt, ...]:
    """Rows of 1 to 48 tokens, the same in every run; of the standard suite also all of them end to end."""
    rows = _draw(graph, _ROWS[suite], progress)
    lengths = np.linspace(1, _ROW_TOKENS, len(rows)).astype(int)
    found = [
        Prompt(id=f"sampled-{number:02d}", kind="ids", ids=tuple(row[:n]))
        for number, (row, n) in enumerate(zip(rows, lengths.tolist(), strict=True), start=1)
    ]
    if suite == "standard":
        found.append(Prompt(id="sampled-long", kind="long", ids=tuple(token for row in rows for token in row)))
    return tuple(found)


def _draw(graph: WeightGraph, n_rows: int, progress: Progress) -> list[list[int]]:
    """Rows that begin with BOS, or an id drawn evenly, and go on as the model's own distribution has it."""
    sentence = "drawing prompts from the checkpoint itself, which has no tokenizer.json"
    progress.note(sentence)
    progress.start(sentence, _ROW_TOKENS - 1, "tokens")
    rng = np.random.default_rng(_SEED)
    bos, size = graph.config.bos_token_id, graph.config.vocab_size
    rows = [[int(rng.integers(size)) if bos is None else bos] for _ in range(n_rows)]
    forward = Forward(graph)
    state = State(len(rows))
    states = forward.states(state, rows)
    while True:
        for row, values in zip(rows, forward.head(np.stack([each[-1] for each in states])), strict=True):
            row.append(_choose(values.astype(np.float64), rng.random()))
        progress.advance(1)
        if len(rows[0]) == _ROW_TOKENS:
            return rows
        states = forward.states(state, [row[-1:] for row in rows])


def _choose(logits: NDArray[np.float64], at: float) -> int:
    """The id at which the cumulative distribution passes `at`, a number from 0 to 1."""
    weights = np.exp(np.nan_to_num(logits - logits.max(), nan=0.0))
    total = np.cumsum(weights)
    return min(int(np.searchsorted(total, at * total[-1], side="right")), len(logits) - 1)
