"""What a .pte stores of a model, from a config alone and without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...graph.blocks import Attention
from ...graph.graph import Weight, WeightGraph
from ...graph.roles import Role, Trait, of_trait
from ...quantize.encoding import Part
from ...quantize.policy import Policy
from ..plans import Fallback, Placement, TensorPlan

# The entry of named data that says which of the file's nameless constants is which tensor.
INDEX_KEY = "lfm-convert"
# The method that says for how many positions a program has room.
CONTEXT_METHOD = "get_max_context_len"
# Of the file that holds the weights if they are not in the program.
DATA_SUFFIX = ".ptd"
# What the module takes as float32 constants of its own; all else but the embedding belongs to a delegate.
VECTORS = of_trait(Trait.NORM, Trait.BIAS, Trait.KERNEL)
# B, C and x of a short convolution; the two halves that a rotation pairs.
_CUTS = {Role.CONV_IN: 3, Role.CONV_IN_BIAS: 3, Role.Q_NORM: 2, Role.K_NORM: 2}
# Parts start on multiples of this in the scratch file and, as segments, in the .pte.
ALIGNMENT = 128


def stored_weights(graph: WeightGraph) -> Iterator[Weight]:
    """Every weight as it is stored: a tied embedding a second time, as the head."""
    for weight in graph.weights():
        yield weight
        if weight.role is Role.EMBED and graph.is_tied:
            yield replace(weight, role=Role.LM_HEAD)


def place(graph: WeightGraph, policy: Policy, scratch: str) -> tuple[list[TensorPlan], list[Fallback], int]:
    """Tensors with their places in the scratch file, those that fell back, and the bytes of that file."""
    tensors, fallbacks, end = [], [], 0
    for weight in stored_weights(graph):
        name = tensor_name(weight.role, weight.layer)
        choice = policy.choose(weight)
        if choice.reason:
            fallbacks.append(Fallback(name, choice.wanted, choice.encoding.name, choice.reason))
        places = []
        for part in choice.encoding.parts(weight.view.n_cols):
            places.append(Placement(scratch, end))
            end += aligned(weight.view.n_rows * part.row_nbytes)
        tensors.append(
            TensorPlan(
                name=name,
                role=weight.role,
                layer=weight.layer,
                shape=weight.shape,
                encoding=choice.encoding,
                view=weight.view,
                placements=tuple(places),
            )
        )
    return tensors, fallbacks, end


def tensor_name(role: Role, layer: int | None) -> str:
    """`ffn_gate.3`: short, since a data key of 64 characters holds it with cut, part and half a hash."""
    return role.value if layer is None else f"{role.value}.{layer}"


def n_cuts(tensor: TensorPlan) -> int:
    """Into how many pieces the module takes a tensor: experts, or what one projection or norm is split in."""
    if tensor.role is None:
        return 1
    if tensor.role.trait is Trait.EXPERTS:
        return tensor.shape[0]
    if tensor.role.trait is Trait.KERNEL:
        return tensor.shape[1]
    return _CUTS.get(tensor.role, 1)


def parts_of(tensor: TensorPlan) -> tuple[Part, ...]:
    return tensor.encoding.parts(tensor.view.n_cols)


def part_sizes(tensor: TensorPlan) -> list[tuple[str, int]]:
    """Label and bytes of every part of every cut: what the file stores as one piece."""
    cuts = n_cuts(tensor)
    return [
        (f"{tensor.name}.{i}.{part.name}", tensor.view.n_rows * part.row_nbytes // cuts)
        for i in range(cuts)
        for part in parts_of(tensor)
    ]


def aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class HeadRegion:
    """A region that queries and keys go through before they meet: whether it norms them, turns them, leaves a rest of each."""

    name: str
    norms: bool = False
    turns: bool = False
    has_rest: bool = False


_ROTATE, _NORM = HeadRegion("rotate", norms=True, turns=True), HeadRegion("norm_heads", norms=True)
_TURN, _TURN_PART = HeadRegion("turn", turns=True), HeadRegion("turn_part", turns=True, has_rest=True)


def head_regions(block: Attention) -> tuple[HeadRegion, ...]:
    """What norms and turns the heads of a block; nothing of one that does neither."""
    if block.rope is None:
        return (_NORM,) if block.qk_norm else ()
    if block.rope.n_dims < block.head_dim:
        return (_NORM, _TURN_PART) if block.qk_norm else (_TURN_PART,)
    return (_ROTATE,) if block.qk_norm else (_TURN,)


def held_window(block: Attention, context: int) -> int | None:
    """Positions of a ring that is shorter than the context; None where the window leaves nothing out."""
    return block.window if block.window is not None and block.window < context else None
