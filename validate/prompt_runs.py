"""Runs an artifact on every prompt, once: its logits, the experts it chose, and how it goes on from there by itself.

A token of a mixture costs its experts' weights whatever it is read for, so that nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.errors import InputError, LfmConvertError
from ..targets.target import Runner
from .jobs import Job
from .probes import AT_ONCE
from .stops import ends_at
from .stored_logits import StoredLogits, save_logits

# The experts [n, top_k] that each layer chose.
Experts = dict[int, NDArray[np.int64]]
# Up to how many tokens a text goes on, and which of them end it.
_Wanted = tuple[int, Callable[[int], bool]]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What is left of the prompts but the logits that were handed on.

    `kept` are the logits of the cache prompts, `greedy` and `end` texts as `Outcome` has them, `experts` those of the
    expert prompts end to end; None if the runtime does not show them in passing.
    """

    kept: Sequence[StoredLogits]
    greedy: tuple[tuple[int, ...], ...] = ()
    end: tuple[int, ...] | None = None
    stops: Mapping[str, tuple[int, ...]]
    experts: Experts | None = None


def run_prompts(runner: Runner, job: Job, folder: Path) -> Ran:
    """Publishes the logits of every prompt, of which it keeps those of the cache prompts in files of its own.

    Raises: InputError for rows of another size than the checkpoint's; what the runtime raises, which of its stop ids
    comes last.
    """
    stops, refused = _stops(runner, job)
    kept: dict[int, StoredLogits | None] = {}
    texts: dict[int, list[tuple[int, ...]]] = {}
    chosen: dict[int, Experts | None] = {}
    runner.expect(max(map(len, job.prompts), default=0) + job.n_greedy)
    with runner.watching() if job.expert_prompts else nullcontext(lambda n: None) as seen:
        for index in range(len(job.prompts)):
            reading = _Reading(runner, job, index, seen)
            also = folder / f"kept-{index:05d}.f32" if index in job.cache_prompts else None
            kept[index] = save_logits(folder, index, reading.rows(), also=also)
            chosen[index] = reading.experts()
            if wanted := _wanted(job, index, stops):
                texts[index] = _continued(runner, reading.last, wanted)
    if refused is not None:
        raise refused
    experts = [chosen[index] for index in job.expert_prompts]
    shown = [each for each in experts if each is not None]
    return Ran(
        kept=[found for index in job.cache_prompts if (found := kept[index]) is not None],
        greedy=tuple(texts[index][0] for index in job.greedy_prompts),
        end=texts[job.end_prompt[0]][-1] if stops and job.end_prompt is not None else None,
        stops=stops,
        experts=end_to_end(shown) if shown and len(shown) == len(experts) else None,
    )


def end_to_end(runs: Sequence[Experts]) -> Experts:
    """The experts of several texts, one after the other."""
    return {layer: np.concatenate([each[layer] for each in runs]) for layer in runs[0]}


def _stops(runner: Runner, job: Job) -> tuple[Mapping[str, tuple[int, ...]], LfmConvertError | None]:
    """The ids at which readers end a text, and why they are not known: no reason to leave the prompts unread."""
    if job.gives_vectors:
        return {}, None
    try:
        return {reader: tuple(map(int, ids)) for reader, ids in runner.stops().items()}, None
    except LfmConvertError as error:
        return {}, error


def _wanted(job: Job, index: int, stops: Mapping[str, Sequence[int]]) -> list[_Wanted]:
    """For what a prompt is continued: the greedy text first, the turn to its end last."""
    wanted: list[_Wanted] = []
    if index in job.greedy_prompts:
        wanted.append((job.n_greedy, job.stop.__contains__))
    if stops and job.end_prompt is not None and job.end_prompt[0] == index:
        wanted.append((job.end_prompt[1], partial(ends_at, stops)))
    return wanted


def _continued(runner: Runner, row: Float32, wanted: Sequence[_Wanted]) -> list[tuple[int, ...]]:
    """The greedy text after the last row of a prompt, as long as any of those who want it; of each its part."""
    text: list[int] = []
    found: dict[int, tuple[int, ...]] = {}
    while True:
        text.append(int(row.argmax()))
        for place, (n, is_end) in enumerate(wanted):
            if place not in found and (len(text) == n or is_end(text[-1])):
                found[place] = tuple(text)
        if len(found) == len(wanted):
            return [found[place] for place in range(len(wanted))]
        row = runner.extend(text[-1:])[-1]


class _Reading:
    """One prompt under way; `last` is the row after which it goes on."""

    last: Float32

    def __init__(self, runner: Runner, job: Job, index: int, seen: Callable[[int], Experts | None]) -> None:
        self._runner, self._job, self._ids = runner, job, job.prompts[index]
        self._seen, self._is_routed = seen, index in job.expert_prompts
        self._chosen: list[Experts | None] = []

    def rows(self) -> Iterator[Float32]:
        """Logits of the prompt, some tokens of it at a time: those of a long one may be larger than the model. Or its
        vectors, all together: a token may see every other.
        """
        n_outputs = self._job.n_outputs
        if self._job.gives_vectors:
            n_rows = len(self._ids) if self._job.is_per_token else 1
            yield _checked(self._runner.vectors(self._ids), n_rows, n_outputs, what="vectors")
            return
        self._runner.reset()
        for low in range(0, len(self._ids), AT_ONCE):
            ids = self._ids[low : low + AT_ONCE]
            logits = _checked(self._runner.extend(ids), len(ids), n_outputs)
            self._chosen.append(self._seen(len(ids)))
            self.last = logits[-1].copy()
            yield logits

    def experts(self) -> Experts | None:
        """Those of the whole prompt, if it is one that they are compared of and they were seen."""
        shown = [each for each in self._chosen if each is not None]
        return end_to_end(shown) if self._is_routed and shown and len(shown) == len(self._chosen) else None


def _checked(logits: Float32, n: int, n_outputs: int, *, what: str = "logits") -> Float32:
    found = np.asarray(logits)
    if found.shape != (n, n_outputs):
        parts = "vocabulary or its tokens are" if what == "logits" else "pooling or its projection is"
        given = (
            f"logits of shape {list(found.shape)} for {n} tokens"
            if what == "logits"
            else f"vectors {list(found.shape)}"
        )
        raise InputError(
            f"the artifact gives {given}: expected {[n, n_outputs]}, "
            f"so its {parts} not the checkpoint's and nothing was compared"
        )
    return found.astype(np.float32, copy=False)
