"""What the checkpoint itself says of every prompt, computed once for all artifacts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..graph.dtypes import Float32
from ..graph.errors import DiskError, InputError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import Forward, Logits, State
from .experts import Ranked, Routed, routed
from .floor import Own
from .metrics import FirstRows, LogitRows
from .prompts import EncodedPrompt

# Tokens of one batch: the weights of a large model are streamed once a batch, and activations grow with it.
BATCH_TOKENS = 2048


# What a run leaves in its folder.
FILES = _ROWS, _EXPERTS = "rows.f32", "experts.npz"
_CHOSEN, _SCORES = "chosen", "scores"


@dataclass(frozen=True)
class Reference:
    """What prompts are scored against, by index.

    Kept are the normed rows before the head, on disk: tokens x hidden size, where logits are tokens x vocabulary.
    `routed` and `ranked` are by layer, and of all tokens laid end to end as the rows are.
    """

    forward: Forward
    prompts: Sequence[EncodedPrompt]
    rows: Float32
    routed: Routed
    ranked: Mapping[int, Float32]

    def logits(self, index: int) -> Logits | Float32:
        """[n, V], of which rows are computed when they are asked for; the vectors of a model that gives these."""
        return self.forward.outputs(self.rows[self._starts[index] : self._starts[index + 1]])

    def own(self, probe: Sequence[EncodedPrompt]) -> Own:
        """What a run on these prompts, or beginnings of some, says: it was made with the others."""
        at = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        rows = np.concatenate([self._starts[at[p.id]] + np.arange(len(p.token_ids)) for p in probe])
        return Own(
            self.forward.graph,
            tuple(probe),
            [self._first(at[p.id], len(p.token_ids)) for p in probe],
            {layer: chosen[rows] for layer, chosen in self.routed.items()},
            {layer: scores[rows] for layer, scores in self.ranked.items()},
        )

    def _first(self, index: int, n_tokens: int) -> LogitRows:
        """What a beginning of a prompt gives; of a model that gives vectors the prompt is whole."""
        found = self.logits(index)
        return found if self.forward.graph.config.vectors else FirstRows(found, n_tokens)

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each prompt, and how many there are."""
        return np.cumsum([0, *(len(prompt.token_ids) for prompt in self.prompts)]).tolist()


def compute_reference(
    graph: WeightGraph,
    prompts: Sequence[EncodedPrompt],
    folder: Path,
    *,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> Reference:
    """Runs the graph on every prompt and stores what logits follow from in an existing folder, for `load_reference`.

    `on_prompt` hears how many prompts are run.
    Raises: InputError if the checkpoint itself overflows; DiskError if the rows do not fit the folder.
    """
    forward = Ranked(graph)
    experts: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in batches([prompt.token_ids for prompt in prompts]):
        states = forward.states(State(len(batch)), [prompts[i].token_ids for i in batch])
        for i, rows in zip(batch, states, strict=True):
            if not np.isfinite(rows).all():
                raise InputError(f"{graph.folder}: the checkpoint's own logits of prompt '{prompts[i].id}' overflow")
            with _room(folder), (folder / _ROWS).open("ab") as file:
                rows.tofile(file)
            on_prompt(i + 1)
        for name, layers in ((_CHOSEN, routed(forward)), (_SCORES, forward.ranked)):
            for layer, values in layers.items():
                experts[f"{name}/{layer}"].append(values)
    with _room(folder):
        np.savez(folder / _EXPERTS, **{name: np.concatenate(values) for name, values in experts.items()})  # type: ignore[arg-type]
    return load_reference(graph, prompts, folder)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Raises DiskError for what cannot be written into the folder; nothing is read in here."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot hold the reference: {error}; set TMPDIR to a folder with more room"
        ) from None


def load_reference(graph: WeightGraph, prompts: Sequence[EncodedPrompt], folder: Path) -> Reference:
    """What `compute_reference` left in a folder for this graph and these prompts."""
    shape = (sum(len(prompt.token_ids) for prompt in prompts), graph.config.hidden_size)
    rows = np.memmap(folder / _ROWS, np.float32, mode="r", shape=shape)
    layers: dict[str, dict[int, np.ndarray]] = {_CHOSEN: {}, _SCORES: {}}
    with np.load(folder / _EXPERTS) as found:
        for name, values in found.items():
            kind, _, layer = name.partition("/")
            layers[kind][int(layer)] = values
    return Reference(Forward(graph), prompts, rows, layers[_CHOSEN], layers[_SCORES])


def batches(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Places of token lists that are run together, in order: as many as the weights are worth reading for."""
    batch: list[int] = []
    n_tokens = 0
    for index, token_ids in enumerate(texts):
        if batch and n_tokens + len(token_ids) > BATCH_TOKENS:
            yield batch
            batch, n_tokens = [], 0
        batch.append(index)
        n_tokens += len(token_ids)
    if batch:
        yield batch
