"""What of a model an adapter can change: its stored tensors by name, as checkpoints and transformers call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..families.places import Kernel, Seat
from ..graph import WeightGraph
from ..roles import Address, Role, Trait
from ..tensor import Shape

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Modules:
    """The tensors of a model under every name that its family has for them."""

    graph: WeightGraph

    @cached_property
    def seats(self) -> Mapping[str, list[tuple[Address, Seat]]]:
        """Which weights' rows each tensor holds, in the order of the family's places."""
        found: dict[str, list[tuple[Address, Seat]]] = {}
        layers = [{role: weight.shape for role, weight in layer.weights.items()} for layer in self.graph.layers]
        for address, shape in self._shapes():
            prefix, places = self.graph.config.family.places(*address)
            layer = {} if address[1] is None else layers[address[1]]
            for place in places:
                for seat in place.seats(prefix, shape, layer):
                    found.setdefault(seat.name, []).append((address, seat))
        return found

    @cached_property
    def kernels(self) -> frozenset[str]:
        """The tensors that are taps of convolutions."""
        family = self.graph.config.family
        found = set()
        for address, _ in self._shapes():
            prefix, places = family.places(*address)
            found |= {prefix + place.name for place in places if isinstance(place, Kernel)}
        return frozenset(found)

    @cached_property
    def linear(self) -> Mapping[str, int | None]:
        """The layer of each module that is a plain matrix in every version of transformers, by the module's name."""
        family = self.graph.config.family
        return {
            family.tensor_name(role, layer).removesuffix(_WEIGHT): layer
            for (role, layer), _ in self._shapes()
            if role.trait is Trait.MATRIX
        }

    @property
    def table(self) -> str:
        """The module of the token embedding."""
        return self.graph.config.family.tensor_name(Role.EMBED, None).removesuffix(_WEIGHT)

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor; None for a name that the model does not have."""
        seats = self.seats.get(name)
        return seats[0][1].shape if seats else None

    def _shapes(self) -> Iterator[tuple[Address, Shape]]:
        for weight in self.graph.weights():
            yield weight.address, weight.shape
        if self.graph.is_tied:  # which an adapter may part
            yield (Role.LM_HEAD, None), self.graph.head.shape
