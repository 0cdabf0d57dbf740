"""What the checkpoint itself says of every prompt, computed once for all artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph.dtypes import Float32
from ..graph.errors import DiskError, InputError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import Logits, State
from .experts import Ranked, Routed, routed
from .floor import Own
from .metrics import FirstRows
from .prompts import EncodedPrompt

# Tokens of one batch: the weights of a large model are streamed once a batch, and activations grow with it.
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class _Choices:
    """How one prompt's tokens were sent to experts, by layer: those chosen, and the scores of all."""

    routed: Routed
    ranked: Mapping[int, Float32]


@dataclass(frozen=True)
class Reference:
    """What prompts are scored against, by index.

    Kept are the normed rows before the head, on disk: tokens x hidden size, where logits are tokens x vocabulary.
    """

    forward: Ranked
    folder: Path
    prompts: Sequence[EncodedPrompt]
    choices: Sequence[_Choices]

    def logits(self, index: int) -> Logits:
        """[n, V], of which rows are computed when they are asked for."""
        return Logits(self.forward, np.load(_path(self.folder, index)))

    def own(self, probe: Sequence[EncodedPrompt]) -> Own:
        """What a run on these prompts, or beginnings of some, says: it was made with the others."""
        at = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        parts = [(at[prompt.id], len(prompt.token_ids)) for prompt in probe]
        layers = self.choices[0].routed
        return Own(
            self.forward.graph,
            tuple(probe),
            [FirstRows(self.logits(i), n) for i, n in parts],
            {layer: np.concatenate([self.choices[i].routed[layer][:n] for i, n in parts]) for layer in layers},
            {layer: np.concatenate([self.choices[i].ranked[layer][:n] for i, n in parts]) for layer in layers},
        )


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
    forward = Ranked(graph)
    choices: list[_Choices] = []
    for batch in batches([prompt.token_ids for prompt in prompts]):
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
        choices += _by_prompt(forward, [len(rows) for rows in states])
    return Reference(forward, folder, prompts, choices)


def _by_prompt(forward: Ranked, lengths: Sequence[int]) -> Iterator[_Choices]:
    """The last call's choices, of each of the prompts that were laid end to end in it."""
    start = 0
    for n in lengths:
        rows = slice(start, start + n)
        ranked = {layer: scores[rows] for layer, scores in forward.ranked.items()}
        yield _Choices({layer: chosen[rows] for layer, chosen in routed(forward).items()}, ranked)
        start += n


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npy"


def batches(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Places of token lists that are run together, in order: as many as the weights are worth reading for."""
    batch: list[int] = []
    n_tokens = 0
    for index, token_ids in enumerate(texts):
        if batch and n_tokens + len(token_ids) > _BATCH_TOKENS:
            yield batch
            batch, n_tokens = [], 0
        batch.append(index)
        n_tokens += len(token_ids)
    if batch:
        yield batch
