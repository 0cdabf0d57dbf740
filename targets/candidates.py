"""What a target could store each weight as: the choices among which encodings are allotted, and the bytes of each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..graph.graph import WeightGraph
from ..graph.roles import Address
from ..quantize.encoding import Encoding, get_encoding
from ..quantize.policy import refusal_of
from .plans import Plan, TensorPlan
from .target import Target

_FLOATS = ("f32", "f16")


@dataclass(frozen=True)
class Alike:
    """Weights that have one encoding: their choices, the bytes of each, and which one the plan has."""

    addresses: tuple[Address, ...]
    encodings: tuple[Encoding, ...]
    sizes: tuple[int, ...]
    planned: int


def candidates(target: Target, graph: WeightGraph, plan: Plan) -> list[Alike]:
    """The tensors of a plan that could be stored otherwise, those that are stored alike together; what is planned is a
    choice of each, and weights that are planned in several encodings at once have none. None of a plan of plain floats.
    """
    if plan.class_name in _FLOATS:
        return []
    groups: dict[Hashable, list[TensorPlan]] = {}
    for tensor in plan.tensors:
        if tensor.role is not None:
            groups.setdefault(target.stored_alike(tensor.role, tensor.layer), []).append(tensor)
    found = (_alike(target, graph, tensors) for tensors in groups.values())
    return [alike for alike in found if alike is not None and len(alike.encodings) > 1]


def _alike(target: Target, graph: WeightGraph, tensors: Sequence[TensorPlan]) -> Alike | None:
    own = tensors[0].encoding
    if any(tensor.encoding.name != own.name for tensor in tensors):
        return None
    names = [_names(target, graph, tensor) for tensor in tensors]
    shared = set(names[0]).intersection(*names)
    encodings = [get_encoding(name) for name in names[0] if name in shared and _fits(name, tensors)]
    if not encodings:
        return None
    if own not in encodings:
        encodings.append(own)
    sizes = tuple(sum(target.stored_bytes(encoding, tensor) for tensor in tensors) for encoding in encodings)
    addresses = tuple(dict.fromkeys(address for tensor in tensors for address in target.covers(tensor)))
    return Alike(addresses, tuple(encodings), sizes, encodings.index(own))


def _names(target: Target, graph: WeightGraph, tensor: TensorPlan) -> list[str]:
    """What a tensor could be, by the names of the encoders: refined ones in a plan of such."""
    names = target.mixes(graph, tensor)
    return [get_encoding(name).refined().name for name in names] if tensor.encoding.is_refined else list(names)


def _fits(name: str, tensors: Sequence[TensorPlan]) -> bool:
    return all(refusal_of(get_encoding(name), tensor.view.shape) is None for tensor in tensors)
