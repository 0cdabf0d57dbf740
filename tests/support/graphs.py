"""Graphs whose blocks are changed and whose weights are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lfm_convert.graph.blocks import Attention, Branch, Mixer, Rope
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.rotary import default_rope

__all__ = ["Mixer", "half_the_head", "with_mixers", "with_rope"]


def with_mixers(graph: WeightGraph, change: Callable[[Mixer], Mixer]) -> WeightGraph:
    """The graph with the mixer of every layer changed."""

    def changed(branch: Branch) -> Branch:
        return replace(branch, block=change(branch.block)) if isinstance(branch.block, Mixer) else branch

    layers = tuple(replace(layer, branches=tuple(map(changed, layer.branches))) for layer in graph.layers)
    config = replace(graph.config, layers=tuple(layer.branches for layer in layers))
    return replace(graph, layers=layers, config=config)


def with_rope(graph: WeightGraph, rope: Rope) -> WeightGraph:
    """The graph with another rope in its full attention."""

    def change(mixer: Mixer) -> Mixer:
        return replace(mixer, rope=rope) if isinstance(mixer, Attention) and mixer.window is None else mixer

    return with_mixers(graph, change)


def half_the_head(head_dim: int) -> Rope:
    """Half of the pairs turn by the frequencies of a head of half the size: not the table of any base and its part."""
    half = default_rope(1e6, head_dim // 2).inverse_frequencies
    return Rope(theta=1e6, inverse_frequencies=(*half, *(0.0,) * len(half)))
