"""Runs the functions of a package in numpy, as the package says them.

| precision | what is rounded to 16 bits                                                                   |
|-----------|----------------------------------------------------------------------------------------------|
| float32   | states, and what a call takes and gives, where the package declares them so                  |
| float16   | besides, every result of every operation, and every decoded weight, that is declared so      |

Inside one operation numbers are float32 in both. Weights are decoded when an operation takes them, large matrices a block
of rows at a time; what was decoded is kept for later calls as long as it fits `kept_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ....graph.errors import InputError, UsageError
from .element_types import FLOAT16, ElementType
from .operators.indexing import write_slice
from .package import Package, open_package, shown
from .program import READ_STATE, WRITE_STATE, Function, Named, Operand, Reference, Step, read_program
from .weights import Held, Weight, rounds

PRECISIONS = ("float32", "float16")
KEPT_BYTES = 1 << 30
# Weights are read through a map: what was read stays in memory until this much has been.
_MAPPED_BYTES = 128 << 20

# The content of each state by name. Floats are held in float32, and are numbers of the declared type.
States = dict[str, NDArray[Any]]


class Evaluator:
    """A package, ready to run. `functions` are its functions by name.

    Raises: InputError for a package that is damaged, or has operations that are not evaluated.
    """

    def __init__(
        self, path: Path | Package, *, precision: str = "float32", threads: int = 1, kept_bytes: int = KEPT_BYTES
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision '{precision}': expected {' or '.join(PRECISIONS)}")
        self.package = path if isinstance(path, Package) else open_package(path)
        self.precision = precision
        self.functions = read_program(self.package)
        self._halves = precision == "float16"
        self._kept = _Kept(kept_bytes, halves=self._halves, threads=threads)
        self._blas = ThreadpoolController()
        self._states = self._all_states()

    def new_states(self) -> States:
        """States of a conversation that has not begun: zeros, for all functions together."""
        return {name: np.zeros(_fixed(kind), kind.type.element.held) for name, kind in self._states.items()}

    def run(
        self,
        function: str,
        inputs: Mapping[str, NDArray[Any]],
        states: States | None = None,
        *,
        watch: Collection[str] = (),
    ) -> dict[str, NDArray[Any]]:
        """The outputs of a call, in their declared element types; and values inside it that are watched, by name.

        States are replaced in `states`.
        Raises: UsageError for inputs that are not the function's; InputError for an operation that fails.
        """
        if function not in self.functions:
            raise UsageError(f"{self.package.path}: has no function '{function}': {', '.join(self.functions)}")
        with np.errstate(all="ignore"), self._blas.limit(limits=1, user_api="blas"):
            return _Call(self, self.functions[function], states if states is not None else {}).run(inputs, watch)

    def held(self, value: Any, element: ElementType) -> Held:
        """A result as its declared type holds it. Raises: ValueError if it is of another kind of number."""
        array = np.asarray(value)
        if array.dtype.str != element.held:
            if array.dtype.kind != np.dtype(element.held).kind and {array.dtype.kind, element.held[1]} != {"i", "u"}:
                raise ValueError(f"it gives {array.dtype} where {element.name} is declared")
            array = array.astype(element.held)
        return halved(array) if self._halves and element.name == FLOAT16 else array

    def kept_in_state(self, data: Held, before: Held, element: ElementType) -> Held:
        """A value as a state of that type keeps it; in float16 every value is such a number already.

        Only numbers that are not those of before are rounded: a state is large, and a call changes little of it.
        """
        if self._halves or element.name != FLOAT16:
            return data
        is_new = data != before
        found: Held = data.copy()
        found[is_new] = halved(data[is_new])
        return found

    def weight(self, weight: Weight) -> Weight:
        """A constant that decodes no more than it must."""
        return _KeptWeight(weight, self._kept)

    def _all_states(self) -> dict[str, Named]:
        found: dict[str, Named] = {}
        for function in self.functions.values():
            for state in function.states:
                if found.setdefault(state.name, state).type != state.type:
                    raise InputError(
                        f"{self.package.path}: state '{shown(state.name)}' is {found[state.name].type} in one function, "
                        f"{state.type} in another"
                    )
        return found


def halved(array: NDArray[Any]) -> NDArray[Any]:
    """The nearest numbers of 16 bits, in float32."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


class _Call:
    """One call of a function: the values that are still needed, by name."""

    def __init__(self, evaluator: Evaluator, function: Function, states: States) -> None:
        self._evaluator, self._function, self._states = evaluator, function, states
        self._values: dict[str, Held] = {}
        self._kinds = {each.name: each.type.element for each in function.states}
        self._made: set[str] = set()  # states whose arrays are of this call, and nobody else's
        self._n_read = 0

    def run(self, inputs: Mapping[str, NDArray[Any]], watch: Collection[str]) -> dict[str, NDArray[Any]]:
        self._take(inputs)
        watched: dict[str, NDArray[Any]] = {}
        for step, following in zip_longest(self._function.steps, self._function.steps[1:]):
            try:
                if not self._writes_through(step, following):
                    self._step(step)
            except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
                raise InputError(f"{self._where}: {step} fails: {shown(str(error), 300)}") from None
            if self._n_read > _MAPPED_BYTES:
                self._evaluator.package.forget()
                self._n_read = 0
            if watch:
                watched.update({each.name: self._values[each.name] for each in step.results if each.name in watch})
            for name in step.last:
                self._values.pop(name, None)
        outputs = {each.name: self._output(each) for each in self._function.outputs}
        return watched | outputs

    @property
    def _where(self) -> str:
        return f"{self._evaluator.package.path}: function '{shown(self._function.name)}'"

    def _take(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        names = [each.name for each in self._function.inputs]
        if set(inputs) != set(names):
            raise UsageError(
                f"{self._where} takes {shown(', '.join(names))}: found {', '.join(sorted(inputs)) or 'nothing'}"
            )
        for each in self._function.inputs:
            array = np.asarray(inputs[each.name])
            dtype = _dtype(each.type.element)
            if not each.type.admits(array.shape) or array.dtype.kind != dtype.kind:
                found = f"{array.dtype} {list(array.shape)}"
                raise UsageError(f"{self._where}: input '{shown(each.name)}' is {each.type}: found {found}")
            self._values[each.name] = array.astype(dtype).astype(each.type.element.held)
        for state in self._function.states:
            array = self._states.setdefault(state.name, np.zeros(_fixed(state), state.type.element.held))
            if not state.type.admits(array.shape) or array.dtype.str != state.type.element.held:
                raise UsageError(f"{self._where}: state '{shown(state.name)}' is {state.type}")

    def _writes_through(self, step: Step, following: Step | None) -> bool:
        """Updates a state where it lies, if nothing else looks at its array: keys and values of all layers are one state,
        and a copy of it for each layer would take most of the time of a token.
        """
        if step.kind != "slice_update" or following is None or following.kind != WRITE_STATE:
            return False
        x, data, name = step.operands["x"], following.operands["data"], following.state
        if not (isinstance(x, Reference) and isinstance(data, Reference) and data.name == step.results[0].name):
            return False
        state = self._states[name]
        if name not in self._made or self._values[x.name] is not state or x.name not in step.last:
            return False
        if any(np.may_share_memory(value, state) for key, value in self._values.items() if key != x.name):
            return False
        operands = {key: self._value(operand) for key, operand in step.operands.items()}
        update = self._evaluator.held(operands["update"], self._kinds[name])
        operands["update"] = halved(update) if self._kinds[name].name == FLOAT16 else update
        self._values[data.name] = write_slice(**operands)
        return True

    def _step(self, step: Step) -> None:
        if step.kind == WRITE_STATE:
            data, before = self._value(step.operands["data"]), self._states[step.state]
            if data is not before:  # else it was written where it lies
                kept = self._evaluator.kept_in_state(data, before, self._kinds[step.state])
                self._states[step.state] = kept.copy() if kept is data else kept
                self._made.add(step.state)
            return
        if step.kind == READ_STATE:
            self._values[step.results[0].name] = self._states[step.state]
            return
        assert step.operator is not None
        operands = {
            key: self._value(operand, stored=key in step.operator.stored) for key, operand in step.operands.items()
        }
        found = step.operator.function(**operands)
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != len(step.results):
            raise ValueError(f"it gives {len(found)} values, {len(step.results)} are declared")
        for value, result in zip(found, step.results, strict=True):
            held = self._evaluator.held(value, result.type.element)
            if not result.type.admits(held.shape):
                raise ValueError(f"it gives {list(held.shape)} where {result.type} is declared")
            self._values[result.name] = held

    def _value(self, operand: Operand | list[Operand], *, stored: bool = False) -> Any:
        if isinstance(operand, list):
            return [self._value(each) for each in operand]
        if isinstance(operand, Reference):
            return self._values[operand.name]
        if isinstance(operand, str):
            return operand
        self._n_read += operand.size * operand.element.bits // 8
        weight = self._evaluator.weight(operand)
        return weight if stored else weight.whole()

    def _output(self, output: Named) -> NDArray[Any]:
        constant = self._function.constants.get(output.name)
        value = self._values[output.name] if constant is None else self._value(constant)
        found: NDArray[Any] = np.asarray(value).astype(_dtype(output.type.element))
        return found


class _Kept:
    """Decoded constants that are kept, while they fit, and the threads that decode."""

    def __init__(self, n_bytes: int, *, halves: bool, threads: int) -> None:
        self._left, self._decoded = n_bytes, dict[Hashable, Held]()
        self.halves = halves
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def find(self, weight: Weight) -> Held | None:
        return self._decoded.get(weight.key)

    def fits(self, weight: Weight) -> bool:
        return weight.size * np.dtype(weight.element.held).itemsize <= self._left

    def keep(self, weight: Weight, decoded: Held) -> None:
        if self.fits(weight) and weight.key not in self._decoded:
            self._left -= decoded.nbytes
            self._decoded[weight.key] = decoded

    def map(self, function: Callable[[Any], Held], items: list[Any]) -> list[Held]:
        return list(self._pool.map(function, items) if self._pool else map(function, items))


class _KeptWeight(Weight):
    """A constant whose decoding is looked up before it is done; rounded where the precision says so."""

    def __init__(self, base: Weight, kept: _Kept) -> None:
        self._base, self._kept = base, kept
        self.element, self.shape, self.key = base.element, base.shape, base.key
        self._rounds = kept.halves and rounds(base)

    def rows(self, start: int, stop: int) -> Held:
        decoded = self._kept.find(self._base)
        if decoded is not None:
            return decoded[start:stop]
        found = self._base.rows(start, stop)
        return halved(found) if self._rounds else found

    def whole(self) -> Held:
        decoded = self._kept.find(self._base)
        if decoded is None:
            decoded = super().whole()
            self._kept.keep(self._base, decoded)
        return decoded

    def over_blocks(self, function: Callable[[int, Held], Held]) -> list[Held]:
        if self._kept.find(self._base) is not None or self._kept.fits(self._base):
            return [function(0, self.whole())]
        return self._kept.map(lambda span: function(span[0], self.rows(*span)), list(self.spans()))


def _fixed(state: Named) -> list[int]:
    return [int(size) for size in state.type.shape or () if size is not None]


def _dtype(element: ElementType) -> np.dtype[Any]:
    """The element type that callers see."""
    return np.dtype(element.stored)
