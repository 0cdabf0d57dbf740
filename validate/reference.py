"""What the checkpoint itself says: logits and greedy tokens of every prompt, computed once for all artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..convert.errors import DiskError, InputError
from ..convert.model.dtypes import Float32
from ..convert.model.forward import Forward
from ..convert.model.graph import WeightGraph
from ..convert.progress import SILENT, Progress
from .prompts import EncodedPrompt

# Logits of one batch in memory; the weights of a large model are streamed once a batch.
_BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class GreedyRun:
    """Greedy tokens of one prompt, and by how much each led the next best. Units: logits."""

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """Logits of prompts by index, on disk, and the greedy runs of some of them."""

    folder: Path
    greedy: tuple[GreedyRun, ...]

    def logits(self, index: int) -> Float32:
        """[n, V], mapped."""
        found: Float32 = np.load(_path(self.folder, index), mmap_mode="r")
        return found


def compute_reference(
    graph: WeightGraph,
    prompts: Sequence[EncodedPrompt],
    folder: Path,
    *,
    greedy_prompts: Sequence[int],
    n_greedy: int,
    progress: Progress = SILENT,
) -> Reference:
    """Runs the graph on every prompt and stores the logits in an existing folder.

    Raises: InputError if the checkpoint's own logits are not finite; DiskError if they do not fit the folder.
    """
    forward = Forward(graph)
    for batch in _batches(prompts, graph.config.vocab_size):
        logits, _ = forward.prefill([prompts[i].token_ids for i in batch])
        for i, values in zip(batch, logits, strict=True):
            if not np.isfinite(values).all():
                raise InputError(f"{graph.folder}: the checkpoint's own logits of prompt '{prompts[i].id}' overflow")
            try:
                np.save(_path(folder, i), values)
            except OSError as error:
                raise DiskError(
                    f"{folder}: cannot hold the reference: {error}; set TMPDIR to a folder with more room"
                ) from None
            progress.advance(1)
    chosen = [prompts[i].token_ids for i in greedy_prompts]
    return Reference(folder, greedy_runs(forward, chosen, n=n_greedy, stop=graph.config.eos_token_ids))


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npy"


def _batches(prompts: Sequence[EncodedPrompt], vocab_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    n_tokens = 0
    for index, prompt in enumerate(prompts):
        if batch and (n_tokens + len(prompt.token_ids)) * vocab_size * 4 > _BATCH_BYTES:
            yield batch
            batch, n_tokens = [], 0
        batch.append(index)
        n_tokens += len(prompt.token_ids)
    if batch:
        yield batch


def greedy_runs(
    forward: Forward, prompts: Sequence[Sequence[int]], *, n: int, stop: Sequence[int]
) -> tuple[GreedyRun, ...]:
    """Greedy continuations, each ending with its first stop id; one batch, so that weights are streamed once a step."""
    if not prompts:
        return ()
    logits, state = forward.prefill(prompts)
    tokens: list[list[int]] = [[] for _ in prompts]
    gaps: list[list[float]] = [[] for _ in prompts]
    while True:
        for i, values in enumerate(logits):
            second, first = np.partition(values[-1], -2)[-2:]
            tokens[i].append(int(values[-1].argmax()))
            gaps[i].append(float(first - second))
        lengths = [next((i + 1 for i, token in enumerate(found) if token in stop), n) for found in tokens]
        if max(lengths) <= len(tokens[0]):
            break
        logits = forward.extend(state, [found[-1:] for found in tokens])
    return tuple(
        GreedyRun(tuple(t[:length]), tuple(g[:length])) for t, g, length in zip(tokens, gaps, lengths, strict=True)
    )
