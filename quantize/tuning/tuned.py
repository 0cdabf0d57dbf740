"""A graph some of whose weights come with tuned codes beside their floats, so that writers take the codes as they are."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...graph.dtypes import Float32
from ...graph.graph import Weight, WeightGraph
from ...graph.roles import Address
from ...graph.tensor import Arrays, TensorView
from ..encoding import Encoding
from ..stored import EncodedTensor
from .store import Store


class TunedTensor(TensorView):
    """A weight as the checkpoint has it, whose parts in one encoding are tuned, or will be: then nobody can read them."""

    def __init__(self, base: TensorView, encoding: Encoding, codes: EncodedTensor | None = None) -> None:
        super().__init__(base.name, base.dtype, base.shape)
        self._base, self._encoding, self._codes = base, encoding, codes

    @property
    def stored_as(self) -> str | None:
        return self._encoding.stored_name

    def stored_rows(self, start: int, stop: int) -> Arrays:
        if self._codes is None:
            return super().stored_rows(start, stop)
        return self._codes.arrays(start, stop)

    def _rows(self, start: int, stop: int) -> Float32:
        return self._base.rows(start, stop)


def tuned_graph(graph: WeightGraph, store: Store, about: Mapping[str, Any]) -> WeightGraph:
    """The same model with the codes of a store; `about` is what its artifacts' manifest says of them."""
    tuned = {each.address: store.encoded(each.address, each.view.name) for each in _weights(graph, store.weights)}
    return _with_codes(graph, {address: (codes.encoding, codes) for address, codes in tuned.items()}, about)


def announced_graph(graph: WeightGraph, chosen: Mapping[Address, Encoding], about: Mapping[str, Any]) -> WeightGraph:
    """The same model as it will be when these weights are tuned: what can be planned."""
    return _with_codes(graph, {address: (encoding, None) for address, encoding in chosen.items()}, about)


def _with_codes(
    graph: WeightGraph,
    codes: Mapping[Address, tuple[Encoding, EncodedTensor | None]],
    about: Mapping[str, Any],
) -> WeightGraph:
    views: dict[Address, TensorView] = {
        each.address: TunedTensor(each.view, *codes[each.address]) for each in _weights(graph, codes)
    }
    return replace(graph.with_weights(views), tuned=about)


def _weights(graph: WeightGraph, chosen: Container[Address]) -> Iterator[Weight]:
    return (each for each in graph.weights() if each.address in chosen)
