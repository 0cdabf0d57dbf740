"""What the checkpoint itself says of every prompt, computed once for all artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph.errors import DiskError, InputError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import Forward, Logits, State
from .prompts import EncodedPrompt

# Tokens of one batch: the weights of a large model are streamed once a batch, and activations grow with it.
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Reference:
    """What prompts are scored against, by index.

    Kept are the normed rows before the head, on disk: tokens x hidden size, where logits are tokens x vocabulary.
    """

    forward: Forward
    folder: Path

    def logits(self, index: int) -> Logits:
        """[n, V], of which rows are computed when they are asked for."""
        return Logits(self.forward, np.load(_path(self.folder, index)))


def compute_reference(
    graph: WeightGraph,
    prompts: Sequence[EncodedPrompt],
    folder: Path,
    *,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> Reference:
    """Runs the graph on every prompt and stores what logits follow from in an existing folder.

    `on_prompt` hears how many prompts are run.
    Raises: InputError if the checkpoint itself overflows; DiskError if the rows do not fit the folder.
    """
    forward = Forward(graph)
    for batch in _batches(prompts):
        states = forward.states(State(len(batch)), [prompts[i].token_ids for i in batch])
        for i, rows in zip(batch, states, strict=True):
            if not np.isfinite(rows).all():
                raise InputError(f"{graph.folder}: the checkpoint's own logits of prompt '{prompts[i].id}' overflow")
            try:
                np.save(_path(folder, i), rows)
            except OSError as error:
                raise DiskError(
                    f"{folder}: cannot hold the reference: {error}; set TMPDIR to a folder with more room"
                ) from None
            on_prompt(i + 1)
    return Reference(forward, folder)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npy"


def _batches(prompts: Sequence[EncodedPrompt]) -> Iterator[list[int]]:
    batch: list[int] = []
    n_tokens = 0
    for index, prompt in enumerate(prompts):
        if batch and n_tokens + len(prompt.token_ids) > _BATCH_TOKENS:
            yield batch
            batch, n_tokens = [], 0
        batch.append(index)
        n_tokens += len(prompt.token_ids)
    if batch:
        yield batch
