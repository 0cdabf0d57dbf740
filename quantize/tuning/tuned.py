"""A graph some of whose weights come with tuned codes beside their floats, so that writers take the codes as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...graph.dtypes import Float32
from ...graph.graph import WeightGraph
from ...graph.tensor import Arrays, TensorView
from ..stored import EncodedTensor
from .store import Store


class TunedTensor(TensorView):
    """A weight as the checkpoint has it, whose parts in one encoding are tuned."""

    def __init__(self, base: TensorView, codes: EncodedTensor) -> None:
        super().__init__(base.name, base.dtype, base.shape)
        self._base, self._codes = base, codes

    @property
    def stored_as(self) -> str | None:
        return self._codes.encoding.stored_name

    def stored_rows(self, start: int, stop: int) -> Arrays:
        return self._codes.arrays(start, stop)

    def _rows(self, start: int, stop: int) -> Float32:
        return self._base.rows(start, stop)


def tuned_graph(graph: WeightGraph, store: Store, about: Mapping[str, Any]) -> WeightGraph:
    """The same model with the codes of a store; `about` is what its artifacts' manifest says of them."""
    views = {weight.address: weight.view for weight in graph.weights()}
    tuned: dict[Any, TensorView] = {
        address: TunedTensor(views[address], store.encoded(address, views[address].name)) for address in store.weights
    }
    return replace(graph.with_weights(tuned), tuned=about)
