"""Where an artifact's weights lose the model: layer by layer, and what putting a layer back would win.

Distances of hidden states only say where to look; no artifact is judged by them, since a smaller one can go with a
larger divergence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..graph.dtypes import Float32
from ..graph.graph import WeightGraph
from ..graph.reference.forward import Forward
from ..graph.reference.state import Batch, State
from .measure import measure_of

# Above this, float32 itself is the noise.
EXACT_DB = 140.0
# A layer whose own signal-to-noise lies this far under the median layer's stands out.
_DROP_DB = 10.0
_N_RESTORED = 3


@dataclass(frozen=True)
class LayerError:
    """One layer. Units: decibels of signal over noise, at most `EXACT_DB`.

    `stream_db` is the residual stream after the layer, with all errors before it; `own_db` is what the layer adds
    to the checkpoint's own stream, and so its error alone.
    """

    layer: int
    stream_db: float
    own_db: float


@dataclass(frozen=True)
class Recovery:
    """One layer (None: embedding and head) put back to the checkpoint's weights.

    `kld` is the divergence then left, in nats; `share` how much of it went away.
    """

    layer: int | None
    kld: float
    share: float


@dataclass(frozen=True)
class Location:
    """Where the stored weights lose the model. `first_drop` is None if the loss is spread over all layers."""

    layers: tuple[LayerError, ...]
    first_drop: int | None
    recoveries: tuple[Recovery, ...]

    @property
    def sentence(self) -> str:
        best = max(self.recoveries, key=lambda r: r.share, default=None)
        if best is None:
            return "the stored weights give the checkpoint's logits: the fault is in how the runtime executes them"
        place = "the embedding and head" if best.layer is None else f"layer {best.layer}"
        won = f"putting {place} back recovers {best.share:.0%} of the divergence that the stored weights cause"
        if self.first_drop is None:
            return f"the loss is spread over the layers; {won}"
        return f"layer {self.first_drop} is the first that drops; {won}"


def locate(graph: WeightGraph, decoded: WeightGraph, prompts: Sequence[Sequence[int]]) -> Location:
    """Compares the forward of an artifact's weights with the checkpoint's on some prompts, layer by layer."""
    layers = _layer_errors(graph, decoded, prompts)
    typical = float(np.median([layer.own_db for layer in layers]))
    first = next((layer.layer for layer in layers if layer.own_db < typical - _DROP_DB), None)
    return Location(layers, first, _recoveries(graph, decoded, prompts, layers))


def _layer_errors(graph: WeightGraph, decoded: WeightGraph, prompts: Sequence[Sequence[int]]) -> tuple[LayerError, ...]:
    right, wrong = Forward(graph), Forward(decoded)
    found = []
    for layer, (before, after), stream in zip(
        decoded.layers, pairwise(right.trace(prompts)), list(wrong.trace(prompts))[1:], strict=True
    ):
        own = wrong.run_layer(layer, before, Batch(State(len(prompts)), [len(prompt) for prompt in prompts]))
        found.append(LayerError(layer.index, _decibels(after, stream), _decibels(after - before, own - before)))
    return tuple(found)


def _decibels(signal: Float32, found: Float32) -> float:
    noise = float(np.sum((signal - found) ** 2, dtype=np.float64))
    power = float(np.sum(signal**2, dtype=np.float64))
    if noise == 0 or power == 0:
        return EXACT_DB if noise == 0 else 0.0
    return min(EXACT_DB, 10 * math.log10(power / noise))


def _recoveries(
    graph: WeightGraph, decoded: WeightGraph, prompts: Sequence[Sequence[int]], layers: Sequence[LayerError]
) -> tuple[Recovery, ...]:
    """The layers with the largest error of their own, and the weights outside layers, put back one at a time."""
    reference, measure = Forward(graph).lazy_logits(prompts), measure_of(graph.config)

    def divergence(candidate: WeightGraph) -> float:
        logits = Forward(candidate).lazy_logits(prompts)
        return float(np.concatenate([measure.of(a, b) for a, b in zip(reference, logits, strict=True)]).mean())

    lost = divergence(decoded)
    if lost < 1e-9:  # as exact as float32 tells
        return ()
    worst = [error.layer for error in sorted(layers, key=lambda error: error.own_db)[:_N_RESTORED]]
    found = []
    for layer in (None, *worst):
        restored = {(w.role, w.layer): w.view for w in graph.weights() if w.layer == layer}
        kld = divergence(decoded.with_weights(restored))
        found.append(Recovery(layer, kld, 1 - kld / lost))
    return tuple(found)
