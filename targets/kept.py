"""What a checkpoint keeps of a model: tensors of one weight each, and such as have the rows of several or other values.

Formats that follow the checkpoint store these tensors, and what is read back of them are the graph's weights again. Rows
are encoded one by one, so that a tensor of several weights has the codes of its parts.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from ..graph.config import ModelConfig
from ..graph.families.family import Family
from ..graph.families.places import Part, without_number
from ..graph.graph import Weight, WeightGraph
from ..graph.opening import declare
from ..graph.roles import Address, Role
from ..graph.tensor import JoinedTensor, Shape, SlicedTensor, TensorView


@dataclass(frozen=True)
class Kept:
    """One tensor: of one weight, or of several of a layer, whose rows follow each other."""

    roles: tuple[Role, ...]
    layer: int | None
    shape: Shape

    @property
    def role(self) -> Role:
        return self.roles[0]


@dataclass(frozen=True)
class KeptWeight(Weight):
    """A tensor with its values, under the address of the first weight that it holds."""

    others: tuple[Role, ...] = ()


def kept_tensors(config: ModelConfig, *, apart: Container[Role] = ()) -> tuple[Kept, ...]:
    """Every tensor of a checkpoint with this config, in model order; weights that are `apart` have one each."""
    shapes = {(slot.role, slot.layer): slot.shape for slot in declare(config)}
    found = []
    for (role, layer), shape in shapes.items():
        roles = _together(config.family, role, layer, apart)
        if role is roles[0]:
            n_rows = sum(shapes[each, layer][-2] for each in roles) if len(roles) > 1 else 0
            found.append(Kept(roles, layer, (*shape[:-2], n_rows, shape[-1]) if n_rows else shape))
    return tuple(found)


def kept_weights(graph: WeightGraph, *, apart: Container[Role] = ()) -> list[KeptWeight]:
    """Every tensor with its values, in model order. Reads nothing."""
    views = {weight.address: weight.view for weight in graph.weights()}
    family, found = graph.config.family, []
    for role, layer in views:
        roles = _together(family, role, layer, apart)
        if role is roles[0]:
            _, (place, *_) = family.places(role, layer)
            parts = [views[each, layer] for each in roles]
            name = family.tensor_name(role, layer)
            view = JoinedTensor(name, parts) if len(parts) > 1 else place.as_stored(parts[0])
            found.append(KeptWeight(role, layer, view, roles[1:]))
    return found


def graph_weights(config: ModelConfig, tensors: Mapping[Kept, TensorView]) -> dict[Address, TensorView]:
    """The weights of a model, of what its tensors hold."""
    shapes = {(slot.role, slot.layer): slot.shape for slot in declare(config)}
    found: dict[Address, TensorView] = {}
    for kept, tensor in tensors.items():
        first = 0
        for role in kept.roles:
            prefix, (place, *_) = config.family.places(role, kept.layer)
            view = place.as_weight(tensor)
            if len(kept.roles) > 1 and isinstance(place, Part):
                n_rows = shapes[role, kept.layer][-2]
                view = SlicedTensor(prefix + without_number(place.called), tensor, first, n_rows)
                first += n_rows
            found[role, kept.layer] = view
    return found


def _together(family: Family, role: Role, layer: int | None, apart: Container[Role]) -> tuple[Role, ...]:
    return (role,) if layer is None or role in apart else family.kept_together(role)
