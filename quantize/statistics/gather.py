"""Two passes over all tokens, one layer at a time: forwards, keeping the residual stream on disk, and back.

Peak memory is that of one layer of one batch of chunks, and with moments those of one layer; the disk holds the
residual stream before each layer, 4 bytes * tokens * hidden * (layers + 3). Sums do not depend on the number of cores:
work is cut by size, every piece runs with one BLAS thread, and pieces are added in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.progress import SILENT, Progress
from ...graph.reference.cores import cut
from ...graph.reference.forward import HEAD_ELEMENTS
from ..together import Chunks, Together, together
from .collector import Collector, n_slices
from .layout import moments_file, written_moments
from .resuming import Resuming
from .spool import Spool
from .triangle import Triangle, n_packed

# What turning a layer round costs, where running it is one: running it again, and two products for each.
_BACKWARD_COST = 3


def scratch_bytes(graph: WeightGraph, n_tokens: int) -> int:
    """What the passes put on the disk meanwhile."""
    return 4 * n_tokens * graph.config.hidden_size * (len(graph.layers) + 3)


@dataclass(frozen=True)
class _Step:
    """A part of the passes after which they can be gone on with: what it costs, does, and leaves without use."""

    cost: int
    do: Callable[[], None]
    drops: tuple[str, ...] = ()


def gather(
    graph: WeightGraph,
    chunks: Chunks,
    *,
    seed: int,
    scratch: Path,
    moments: Path | None = None,
    progress: Progress = SILENT,
) -> Collector:
    """Runs chunks of token ids, each from an empty state, and back; `moments` is the folder that these are written to.

    The loss is that of one label a token, drawn by `seed` from what the model says. What an interrupted run of the same
    left in `scratch` is gone on with, layer by layer.
    Raises: OSError of a disk that is full; InputError for a scratch folder that cannot be read.
    """
    run, spool = Collector(graph, with_moments=moments is not None), Spool(scratch, graph.config.hidden_size)
    parts, kept = together(chunks), Resuming(scratch)
    n_tokens = parts[-1].stop
    steps = _steps(run, spool, parts, np.random.default_rng(seed).random(n_tokens), moments, progress)
    progress.start("calibrating", n_tokens * sum(step.cost for step in steps), "token layers")
    done = kept.load(run)
    progress.advance(n_tokens * sum(step.cost for step in steps[:done]))
    for number, step in enumerate(steps[done:], done + 1):
        step.do()
        kept.save(run, number)
        for name in step.drops:
            spool.drop(name)
    scale = np.float32(graph.config.embedding_scale)
    for part in parts:
        run.met_embedded(part.ids, spool.read(_gradient(0), part.start, part.stop) * scale)
    return run


def _steps(
    run: Collector,
    spool: Spool,
    parts: Sequence[Together],
    uniform: np.ndarray,
    moments: Path | None,
    progress: Progress,
) -> list[_Step]:
    """Both passes: the table's rows, each layer, the loss, each layer back."""
    graph = run.graph
    n = len(graph.layers)

    def embed() -> None:
        for part in parts:
            spool.write(_before(0), part.start, run.embedded(part.chunks))

    def turn_end() -> None:
        _turn_end(run, spool, uniform, progress)
        if moments is not None:
            _write_moments(run, graph, moments)

    def turn(layer: Layer) -> None:
        _turn_layer(run, layer, parts, spool, progress)
        if moments is not None:
            _write_moments(run, graph, moments)

    forward = [_Step(1, partial(_run_layer, run, layer, parts, spool, progress)) for layer in graph.layers]
    back = [
        _Step(_BACKWARD_COST, partial(turn, layer), (_before(layer.index), _gradient(layer.index + 1)))
        for layer in reversed(graph.layers)
    ]
    return [_Step(0, embed), *forward, _Step(_BACKWARD_COST, turn_end, (_before(n),)), *back]


def _before(layer: int) -> str:
    """The spool's name of the residual stream before a layer."""
    return f"residual-{layer}"


def _gradient(layer: int) -> str:
    """That of the gradient by it, which is no other's: a step that was cut off finds what it began with."""
    return f"gradient-{layer}"


def _run_layer(run: Collector, layer: Layer, parts: Sequence[Together], spool: Spool, progress: Progress) -> None:
    for part in parts:
        hidden = run.run_layer(layer, spool.read(_before(layer.index), part.start, part.stop), part.batch())
        spool.write(_before(layer.index + 1), part.start, hidden)
        progress.advance(part.stop - part.start)
    run.lend(layer)


def _turn_end(run: Collector, spool: Spool, uniform: np.ndarray, progress: Progress) -> None:
    """The loss of all tokens, of as many at a time as have `HEAD_ELEMENTS` logits."""
    name = _before(len(run.graph.layers))
    for start, stop in cut(len(uniform), max(1, HEAD_ELEMENTS // run.graph.config.vocab_size)):
        run.watch(start)
        _, gradient = run.turn_end(spool.read(name, start, stop), uniform[start:stop])
        run.rest()
        spool.write(_gradient(len(run.graph.layers)), start, gradient)
        progress.advance(_BACKWARD_COST * (stop - start))


def _turn_layer(run: Collector, layer: Layer, parts: Sequence[Together], spool: Spool, progress: Progress) -> None:
    name = _before(layer.index)
    for part in parts:
        run.watch(part.start)
        _, pull = run.turn_layer(layer, spool.read(name, part.start, part.stop), part.batch())
        gradient = pull(spool.read(_gradient(layer.index + 1), part.start, part.stop))
        run.rest()
        spool.write(_gradient(layer.index), part.start, gradient)
        progress.advance(_BACKWARD_COST * (part.stop - part.start))


def _write_moments(run: Collector, graph: WeightGraph, folder: Path) -> None:
    weights = {weight.address: weight for weight in graph.weights()}
    for address, triangles in run.taken_moments().items():
        _write_triangles(folder / moments_file(address), weights[address], triangles)


def _write_triangles(path: Path, weight: Weight, triangles: Sequence[Triangle | None]) -> None:
    n = n_packed(weight.shape[-1])
    with written_moments(path, (n_slices(weight), n)) as write:
        for triangle in triangles:
            write(np.zeros(n, np.float32) if triangle is None else triangle.mean())
