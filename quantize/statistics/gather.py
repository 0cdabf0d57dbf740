"""Two passes over all tokens, one layer at a time: forwards, keeping the residual stream on disk, and back.

Peak memory is that of one layer of one batch of chunks, and with moments those of one layer; the disk holds the
residual stream before each layer, 4 bytes * tokens * hidden * (layers + 2). Sums do not depend on the number of cores:
work is cut by size, every piece runs with one BLAS thread, and pieces are added in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.progress import SILENT, Progress
from ...graph.reference.cores import cut
from ...graph.reference.forward import HEAD_ELEMENTS
from ..together import Chunks, Together, together
from .collector import Collector, n_slices
from .layout import moments_file, written_moments
from .spool import Spool
from .triangle import Triangle, n_packed

# What turning a layer round costs, where running it is one: running it again, and two products for each.
_BACKWARD_COST = 3
_GRADIENT = "gradient"


def scratch_bytes(graph: WeightGraph, n_tokens: int) -> int:
    """What the passes put on the disk meanwhile."""
    return 4 * n_tokens * graph.config.hidden_size * (len(graph.layers) + 2)


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

    The loss is that of one label a token, drawn by `seed` from what the model says.
    Raises: OSError of a disk that is full.
    """
    run, spool = Collector(graph, with_moments=moments is not None), Spool(scratch, graph.config.hidden_size)
    parts = together(chunks)
    n_tokens = parts[-1].stop
    n_steps = (1 + _BACKWARD_COST) * len(graph.layers) + _BACKWARD_COST
    progress.start("calibrating", n_tokens * n_steps, "token layers")
    for part in parts:
        spool.write(_before(0), part.start, run.embedded(part.chunks))
    for layer in graph.layers:
        _run_layer(run, layer, parts, spool, progress)
    _turn_end(run, spool, np.random.default_rng(seed).random(n_tokens), progress)
    if moments is not None:
        _write_moments(run, graph, moments)
    for layer in reversed(graph.layers):
        _turn_layer(run, layer, parts, spool, progress)
        if moments is not None:
            _write_moments(run, graph, moments)
    scale = np.float32(graph.config.embedding_scale)
    for part in parts:
        run.met_embedded(part.ids, spool.read(_GRADIENT, part.start, part.stop) * scale)
    return run


def _before(layer: int) -> str:
    """The spool's name of the residual stream before a layer."""
    return f"residual-{layer}"


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
        spool.write(_GRADIENT, start, gradient)
        progress.advance(_BACKWARD_COST * (stop - start))
    spool.drop(name)


def _turn_layer(run: Collector, layer: Layer, parts: Sequence[Together], spool: Spool, progress: Progress) -> None:
    name = _before(layer.index)
    for part in parts:
        run.watch(part.start)
        _, pull = run.turn_layer(layer, spool.read(name, part.start, part.stop), part.batch())
        gradient = pull(spool.read(_GRADIENT, part.start, part.stop))
        run.rest()
        spool.write(_GRADIENT, part.start, gradient)
        progress.advance(_BACKWARD_COST * (part.stop - part.start))
    spool.drop(name)


def _write_moments(run: Collector, graph: WeightGraph, folder: Path) -> None:
    weights = {weight.address: weight for weight in graph.weights()}
    for address, triangles in run.taken_moments().items():
        _write_triangles(folder / moments_file(address), weights[address], triangles)


def _write_triangles(path: Path, weight: Weight, triangles: Sequence[Triangle | None]) -> None:
    n = n_packed(weight.shape[-1])
    with written_moments(path, (n_slices(weight), n)) as write:
        for triangle in triangles:
            write(np.zeros(n, np.float32) if triangle is None else triangle.mean())
