"""Tunes the codes of a model, layer by layer from the quantised prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...graph.blocks import Branch
from ...graph.errors import UsageError, needs_extra
from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.progress import SILENT, Progress
from ...graph.roles import Address, Role, Trait
from ..committed import Tunable
from ..encoding import Encoding
from .memory import Room, Scratch
from .moments import Moments, products_are_less
from .rows import Rows
from .store import Store, digest_of
from .streams import Ending, Inputs, Stage, Streams, final_states, quantised_layer

# What the codes depend on beside the text and the encodings: another method is another number.
METHOD = 3
# Fewer tokens say too little of any matrix.
LEAST_TOKENS = 1024
_NEEDS = "gguf"


class Text(Protocol):
    """What is taken of statistics: the chunks of token ids that were run, and a digest of it all."""

    @property
    def chunks(self) -> Sequence[Sequence[int]]: ...

    @property
    def sha256(self) -> str: ...


def tune(
    graph: WeightGraph,
    chosen: Mapping[Address, Encoding],
    statistics: Text,
    folder: Path,
    *,
    room: Room | None = None,
    progress: Progress = SILENT,
) -> Store:
    """Tuned codes of the head and every matrix of the layers whose chosen encoding can be tuned, in a folder of their own.

    Layers that are finished there are taken as they are. What is found does not depend on the `room` there is.
    Raises: UsageError for too little text; InputError for inputs that are no numbers; DiskError; BackendError without
    the compiler.
    """
    refuse_too_little(statistics.chunks)
    with needs_extra(_NEEDS, "tuning codes"):
        from . import _kernels  # noqa: F401  # brings the compiler
    tunable = {address: each for address, each in chosen.items() if isinstance(each, Tunable)}
    names = {(role.value, layer): each.name for (role, layer), each in chosen.items()}
    key = digest_of((METHOD, statistics.sha256, sorted(names.items(), key=str)))
    store, scratch = Store(folder, key), Scratch(folder, room or Room())
    work = [(layer, _weights(graph, layer.weights.values(), tunable)) for layer in graph.layers]
    tops = _weights(graph, graph.top.values(), tunable)
    total = sum(_n_elements(weight) for weight in (*tops, *(each for _, some in work for each in some)))
    progress.start("tuning codes", total, "weights")
    for weight in tops:
        _tune_head(graph, weight, tunable[weight.address], statistics.chunks, store, scratch, progress)
    embed = (Role.EMBED, None)
    table = store.encoded(embed, "embedding") if embed in store.weights else None
    streams = Streams(graph, statistics.chunks, scratch=scratch, chosen=chosen, table=table)
    try:
        for layer, weights in work:
            encodings = {weight.address: tunable[weight.address] for weight in weights}
            _Work(layer.weights, encodings, store, scratch, progress, layer, streams).do()
    finally:
        scratch.close()
    return store


def refuse_too_little(chunks: Sequence[Sequence[int]]) -> None:
    """Raises: UsageError for a text that says too little of any matrix."""
    n_tokens = sum(map(len, chunks))
    if n_tokens < LEAST_TOKENS:
        raise UsageError(f"tuning codes needs a text of at least {LEAST_TOKENS} tokens: this one has {n_tokens}")


def can_tune(graph: WeightGraph, weight: Weight, encoding: Encoding) -> bool:
    """Whether codes of a weight can be tuned: a matrix of a layer or the head, whose source has no codes of its own."""
    return (
        (weight.role.trait in (Trait.MATRIX, Trait.EXPERTS) or weight.view is graph.head)
        and isinstance(encoding, Tunable)
        and weight.view.stored_as is None
        and weight.view.grid is None
        and encoding.refusal(weight.view.n_cols) is None
    )


def _weights(graph: WeightGraph, some: Iterable[Weight], tunable: Mapping[Address, Tunable]) -> list[Weight]:
    return [w for w in some if w.address in tunable and can_tune(graph, w, tunable[w.address])]


def _n_elements(weight: Weight) -> int:
    return weight.view.n_rows * weight.view.n_cols


def _tune_head(
    graph: WeightGraph,
    weight: Weight,
    encoding: Tunable,
    chunks: Sequence[Sequence[int]],
    store: Store,
    scratch: Scratch,
    progress: Progress,
) -> None:
    """Tunes the head before the layers, since it may be their embedding, too, by its inputs in float."""
    if None in store.layers:
        progress.advance(_n_elements(weight))
        return
    rows = Rows({weight.role: weight}, {weight.address: encoding}, store, scratch, progress)
    moments = Moments(weight.view.n_cols)
    for states in final_states(graph, chunks):
        rows.add([(moments, Inputs(states, states))])
    rows.tune((weight.address,), {0: moments}, is_looked_up=graph.is_tied)
    store.finish(None)


@dataclass(frozen=True)
class _Work(Rows):
    """One layer."""

    layer: Layer
    streams: Streams

    def do(self) -> None:
        is_done = self.layer.index in self.store.layers
        for branch in self.layer.branches:
            if not is_done:
                course = self.streams.course(branch, self.layer)
                for stage in course.stages:
                    wanted = tuple(address for address in stage if address in self.encodings)
                    if wanted:
                        self.tune(wanted, self._moments(branch, wanted, course.ending_of(stage)))
            self.streams.advance(branch, self.layer, quantised_layer(self.layer, self.store))
        if is_done:
            self.progress.advance(sum(_n_elements(self._weight(each)) for each in self.encodings))
        else:
            self.store.finish(self.layer.index)

    def _moments(self, branch: Branch, stage: Stage, ending: Ending | None) -> dict[int, Moments]:
        """What each slice of the weights meets; of an expert that no token reaches nothing."""
        view = self._weight(stage[0]).view
        n_slices = view.shape[0] if len(view.shape) == 3 else 1
        alone = self._weight(stage[0]) if n_slices == 1 and len(stage) == 1 and products_are_less(view.shape) else None
        if alone is not None:
            found = {0: Moments(view.n_cols, n_rows=view.n_rows)}
        else:
            sums = (self.scratch.sums(which, view.n_cols, n_slices=n_slices) for which in range(n_slices))
            found = {which: Moments(view.n_cols, each) for which, each in enumerate(sums)}
        layer = quantised_layer(self.layer, self.store)
        for batch in self.streams.inputs(branch, self.layer, layer, stage, ending):
            inputs = {which: x if alone is None else self.streams.drifted(alone, x) for (_, which), x in batch.items()}
            self.add([(found[which], x) for which, x in inputs.items()])
        return found
