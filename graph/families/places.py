"""Where checkpoints keep a weight: whole, with another axis, cut out of a larger tensor, or an expert at a time.

A place gives a view of the stored tensors in the shape that the graph has; nothing is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..dtypes import WEIGHT_DTYPES
from ..misfits import Misfits
from ..roles import Role
from ..tensor import (
    OffsetTensor,
    ReshapedTensor,
    Shape,
    SlicedTensor,
    StackedTensor,
    TensorView,
    n_rows_of,
    without_offset,
)

# Where each expert's number stands in a name.
EXPERT = "{e}"


class Shelf:
    """The tensors of a checkpoint, and which of them some weight has taken."""

    def __init__(self, tensors: Mapping[str, TensorView]) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()
        self.misfits = Misfits()

    def take(self, name: str, shape: Shape) -> TensorView | None:
        """The tensor of that name; None, with a misfit, if it is absent or not of this shape or any float type."""
        tensor = self.tensors.get(name)
        self.taken.add(name)
        if tensor is None:
            self.misfits.missing[name] = shape
        elif tensor.shape != shape:
            self.misfits.misshapen[name] = (shape, tensor.shape)
        elif tensor.dtype not in WEIGHT_DTYPES:
            self.misfits.mistyped[name] = tensor.dtype.value, "F32, F16 or BF16"
        else:
            return tensor
        return None

    @property
    def left(self) -> tuple[str, ...]:
        """The names that nobody took."""
        return tuple(name for name in self.tensors if name not in self.taken)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Which rows of a weight a stored tensor of this name and shape holds: blocks of `count` rows that follow each other
    in the weight from `first` on, and in the tensor lie every `period` rows from `offset` on.
    """

    name: str
    shape: Shape
    count: int
    n_blocks: int = 1
    first: int = 0
    offset: int = 0
    period: int = 0

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Of the weight's rows [start, stop) those that lie here: a row of the weight, the tensor's row, how many."""
        low, high = max(start, self.first), min(stop, self.first + self.n_blocks * self.count)
        while low < high:
            block, row = divmod(low - self.first, self.count)
            n = min(self.count - row, high - low)
            yield low, self.offset + block * self.period + row, n
            low += n


# The shapes of all weights of a layer, which tell how much of a tensor each of them has.
Shapes = Mapping[Role, Shape]


@dataclass(frozen=True)
class Place:
    """A tensor of the weight's own shape. `beside` is one that lies there only if this one ought to."""

    name: str
    beside: str | None = field(default=None, kw_only=True)

    def is_there(self, shelf: Shelf, prefix: str) -> bool:
        return any(prefix + name in shelf.tensors for name in (self.name, self.beside) if name)

    def take(self, shelf: Shelf, prefix: str, shape: Shape, layer: Shapes) -> TensorView | None:
        return shelf.take(prefix + self.name, shape)

    def seats(self, prefix: str, shape: Shape, layer: Shapes) -> Iterator[Seat]:
        """The tensors that would hold a weight of this shape here."""
        yield Seat(name=prefix + self.name, shape=shape, count=n_rows_of(shape))

    def as_stored(self, view: TensorView) -> TensorView:
        """The values that a tensor has here, of those that the weight has."""
        return view

    def as_weight(self, tensor: TensorView) -> TensorView:
        """The values that the weight has, of those that a tensor has here."""
        return tensor


@dataclass(frozen=True)
class Kernel(Place):
    """Taps [H, K] as a convolution keeps them: [H, 1, K]."""

    def take(self, shelf: Shelf, prefix: str, shape: Shape, layer: Shapes) -> TensorView | None:
        n_channels, width = shape
        tensor = shelf.take(prefix + self.name, (n_channels, 1, width))
        return tensor and ReshapedTensor(tensor, shape)

    def seats(self, prefix: str, shape: Shape, layer: Shapes) -> Iterator[Seat]:
        n_channels, width = shape
        yield Seat(name=prefix + self.name, shape=(n_channels, 1, width), count=n_channels)


@dataclass(frozen=True)
class GainLessOne(Place):
    """Gains of a norm, of which a checkpoint keeps what they are more than one."""

    def take(self, shelf: Shelf, prefix: str, shape: Shape, layer: Shapes) -> TensorView | None:
        tensor = shelf.take(prefix + self.name, shape)
        return tensor and self.as_weight(tensor)

    def as_stored(self, view: TensorView) -> TensorView:
        return without_offset(view, 1)

    def as_weight(self, tensor: TensorView) -> TensorView:
        return OffsetTensor(tensor, 1)


@dataclass(frozen=True)
class PerExpert(Place):
    """A stack [E, out, in] as a tensor an expert; its number stands for "{e}" in the name."""

    def is_there(self, shelf: Shelf, prefix: str) -> bool:
        return prefix + self.name.format(e=0) in shelf.tensors

    def take(self, shelf: Shelf, prefix: str, shape: Shape, layer: Shapes) -> TensorView | None:
        names = [prefix + self.name.format(e=expert) for expert in range(shape[0])]
        parts = [part for name in names if (part := shelf.take(name, shape[1:])) is not None]
        return StackedTensor(prefix + without_number(self.name), parts) if len(parts) == shape[0] else None

    def seats(self, prefix: str, shape: Shape, layer: Shapes) -> Iterator[Seat]:
        n_experts, n_rows = shape[0], n_rows_of(shape[1:])
        for expert in range(n_experts):
            name = prefix + self.name.format(e=expert)
            yield Seat(name=name, shape=shape[1:], count=n_rows, first=expert * n_rows)


@dataclass(frozen=True)
class Part(Place):
    """The rows of one weight in a tensor that keeps several of a layer, one after the other, in each matrix of a stack.

    `called` is what the part is called by itself, `role` which of the `roles` it is.
    """

    called: str
    role: Role
    roles: tuple[Role, ...]

    def take(self, shelf: Shelf, prefix: str, shape: Shape, layer: Shapes) -> TensorView | None:
        offset, period = self._rows(layer)
        tensor = shelf.take(prefix + self.name, (*shape[:-2], period, shape[-1]))
        return tensor and SlicedTensor(prefix + without_number(self.called), tensor, offset, shape[-2])

    def seats(self, prefix: str, shape: Shape, layer: Shapes) -> Iterator[Seat]:
        offset, period = self._rows(layer)
        yield Seat(
            name=prefix + self.name,
            shape=(*shape[:-2], period, shape[-1]),
            count=shape[-2],
            n_blocks=n_rows_of(shape[:-1]),
            offset=offset,
            period=period,
        )

    def _rows(self, layer: Shapes) -> tuple[int, int]:
        """How many of the tensor's rows are before the part's, and how many there are."""
        rows = [layer[role][-2] for role in self.roles]
        return sum(rows[: self.roles.index(self.role)]), sum(rows)


def without_number(name: str) -> str:
    """What the tensors of all experts are called together."""
    return name.replace(f"{EXPERT}.", "")


def expert_places(scope: str, *, gate: str, up: str, down: str) -> dict[Role, Sequence[Place]]:
    """Where the experts below a scope are: a tensor each, or all in two, as transformers holds them in memory and writes
    them since version 5: gate rows, then up rows, of each expert.
    """
    stack, downs, roles = f"{scope}.gate_up_proj", f"{scope}.down_proj", (Role.EXPERT_GATE, Role.EXPERT_UP)
    alone = {role: PerExpert(f"{scope}.{EXPERT}.{name}.weight") for role, name in zip(roles, (gate, up), strict=True)}
    return {
        **{role: [place, Part(stack, place.name, role, roles, beside=downs)] for role, place in alone.items()},
        Role.EXPERT_DOWN: [PerExpert(f"{scope}.{EXPERT}.{down}.weight"), Place(downs, beside=stack)],
    }
