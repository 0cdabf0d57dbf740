"""Takes the tensors of packed weights out of a checkpoint, each once, and collects what is wrong with any of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from ...dtypes import DType
from ...misfits import Misfits
from ...tensor import Shape, TensorView
from ..safetensors import StoredTensor
from .views import PackedTensor

# As many rows, columns or elements no matrix has; numpy counts them in 64 bits.
_TOO_MANY = 1 << 40


def is_count(value: object, *, least: int = 1) -> TypeGuard[int]:
    """Whether what a config gives is a number of rows, columns or elements."""
    return type(value) is int and least <= value < _TOO_MANY


@dataclass(frozen=True)
class Unpacked:
    """A checkpoint's tensors with plain weights in place of packed ones.

    `quantised_as` names what they were packed as. `misfits` and `faults` are what is wrong; what could not be decoded
    is in `told`, so that it is not missed once more.
    """

    tensors: Mapping[str, TensorView]
    quantised_as: str | None = None
    misfits: Misfits = field(default_factory=Misfits)
    faults: tuple[str, ...] = ()
    told: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class Taking:
    """The tensors of a checkpoint while a method decodes its own. `dtype` is the model's own."""

    def __init__(self, tensors: Mapping[str, StoredTensor], dtype: DType) -> None:
        self.tensors, self.dtype = tensors, dtype
        self._taken: set[str] = set()
        self._decoded: dict[str, PackedTensor] = {}
        self._schemes: Counter[str] = Counter()
        self._misfits = Misfits()
        self._faults: list[str] = []
        self._told: set[str] = set()
        self._notes: list[str] = []

    def modules(self, ends: Sequence[str]) -> list[str]:
        """Modules that have a tensor with one of these ends, in the checkpoint's order."""
        found = (name.removesuffix(end) for name in self.tensors for end in ends if name.endswith(end))
        return list(dict.fromkeys(found))

    def has(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, *, dtypes: Iterable[DType], shapes: Sequence[Shape]) -> StoredTensor | None:
        """The tensor if it is of one of the types and shapes; else None, with a misfit."""
        self._taken.add(name)
        tensor = self.tensors.get(name)
        types = tuple(dtypes)
        if tensor is None:
            self._misfits.missing[name] = shapes[0]
        elif tensor.dtype not in types:
            self._misfits.mistyped[name] = tensor.dtype.value, _one_of(types)
        elif tensor.shape not in shapes:
            self._misfits.misshapen[name] = shapes[0], tensor.shape
        else:
            return tensor
        return None

    def main(self, name: str, *, dtypes: Iterable[DType], n_axes: Sequence[int] = (2,)) -> StoredTensor | None:
        """The tensor whose shape the others follow; None, with a misfit, if it is absent or cannot be that."""
        tensor = self.tensors.get(name)
        if tensor is None:
            self._misfits.missing[name] = None
            return None
        found = self.take(name, dtypes=dtypes, shapes=[tensor.shape])
        if found is not None and len(tensor.shape) not in n_axes:
            axes = " or ".join(map(str, n_axes))
            self._faults.append(f"tensor '{name}' has shape {list(tensor.shape)}: expected {axes} axes")
            return None
        return found

    def drop(self, names: Iterable[str], why: str) -> None:
        """Takes what is not needed, with a note on how many tensors that are."""
        dropped = [name for name in names if name in self.tensors and name not in self._taken]
        self._taken.update(dropped)
        if dropped:
            more = (
                f"{len(dropped)} tensors such as '{dropped[0]}' {why}"
                if len(dropped) > 1
                else f"tensor '{dropped[0]}' {why}"
            )
            self._notes.append(f"{more}: not used")

    def fault(self, sentence: str) -> None:
        """Notes what no single tensor shows."""
        if sentence not in self._faults:
            self._faults.append(sentence)

    def decoded(self, weight: str, view: PackedTensor, scheme: str) -> None:
        """Puts a weight in place."""
        self._decoded[weight] = view
        self._schemes[scheme] += view.n_rows * view.n_cols

    def give_up(self, weight: str, parts: Iterable[str]) -> None:
        """Notes that a weight cannot be read for what is already said of it or its parts."""
        self._told.add(weight)
        self._taken.update(parts)

    @property
    def is_any(self) -> bool:
        """Whether a weight was decoded, or could not be."""
        return bool(self._decoded or self._told)

    def result(self, method: str) -> Unpacked:
        schemes = [scheme for scheme, _ in self._schemes.most_common()]
        plain = {name: tensor for name, tensor in self.tensors.items() if name not in self._taken}
        return Unpacked(
            tensors={**plain, **self._decoded},
            quantised_as=f"{method} {' and '.join(schemes)}".strip(),
            misfits=self._misfits,
            faults=tuple(self._faults),
            told=frozenset(self._told),
            notes=tuple(self._notes),
        )


def _one_of(types: Sequence[DType]) -> str:
    """`F32, F16 or BF16`."""
    *others, last = [each.value for each in types]
    return f"{', '.join(others)} or {last}" if others else last
