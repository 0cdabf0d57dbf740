"""The functions of a package's program, each operation checked and bound to what computes it.

What a package may get wrong is told when it is opened: operations that are not evaluated (all of them together), names
that are used before they are given, operands that are missing or of another element type, results of impossible size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....graph.errors import InputError
from .element_types import ElementType
from .operators.operator import LIST, MAX_NUMBERS, Operator
from .operators.table import OPSETS, operators
from .package import Package, shown
from .values import COMBINATIONS, TensorType, combine, read_value, tensor_type
from .weights import Weight

READ_STATE, WRITE_STATE = "read_state", "write_state"
_CONST = "const"
# What a constant that is a string is of.
_TEXT = TensorType(ElementType("string", 8, "U", "U", 2), ())


@dataclass(frozen=True)
class Named:
    """A tensor, or the content of a state, by its name."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Reference:
    """An operand that is the value of that name."""

    name: str


Operand = Reference | Weight | str


@dataclass(frozen=True)
class Step:
    """One operation; `operator` is None for the two that read and write a state. `last` are values it is the last to use."""

    kind: str
    name: str
    operator: Operator | None
    operands: Mapping[str, Operand | list[Operand]]
    results: tuple[Named, ...]
    last: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """The state that is read or written."""
        operand = self.operands["input"]
        assert isinstance(operand, Reference)
        return operand.name

    def uses(self) -> Iterator[str]:
        """Names of the values it takes."""
        return (each.name for each in _flat(self.operands.values()) if isinstance(each, Reference))

    def __str__(self) -> str:
        return f"operation '{self.name}' ({self.kind})"


@dataclass(frozen=True)
class Function:
    """A function of the program; `steps` are in the order in which they are run."""

    name: str
    opset: str
    inputs: tuple[Named, ...]
    states: tuple[Named, ...]
    outputs: tuple[Named, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Weight | str]


def read_program(package: Package) -> dict[str, Function]:
    """The functions by name.

    Raises: InputError, in one sentence, for a program that is damaged or has operations that are not evaluated.
    """
    spec = package.spec
    if spec.WhichOneof("Type") != "mlProgram":
        raise InputError(f"{package.path}: expected a model that is an ML program, found {spec.WhichOneof('Type')}")
    functions = spec.mlProgram.functions
    if not functions:
        raise InputError(f"{package.path}: its program has no function")
    blocks = {name: _block(package, name, functions[name]) for name in sorted(functions)}
    _refuse_unknown(package, blocks, {name: functions[name].opset for name in functions})
    return {name: _Reader(package, name, functions[name], block).read() for name, block in blocks.items()}


def _block(package: Package, name: str, function: Any) -> Any:
    if function.opset not in OPSETS or function.opset not in function.block_specializations:
        raise InputError(
            f"{package.path}: function '{shown(name)}' is of opset '{shown(function.opset)}': expected {', '.join(OPSETS)}"
        )
    return function.block_specializations[function.opset]


def _refuse_unknown(package: Package, blocks: Mapping[str, Any], opsets: Mapping[str, str]) -> None:
    known = {_CONST, READ_STATE, WRITE_STATE} | COMBINATIONS
    unknown = {
        shown(operation.type)
        for name, block in blocks.items()
        for operation in block.operations
        if operation.type not in known and operation.type not in operators(opsets[name])
    }
    if unknown:
        raise InputError(f"{package.path}: has operations that are not evaluated: {', '.join(sorted(unknown)[:20])}")


class _Reader:
    """Reads one function, and keeps what its names stand for so far."""

    def __init__(self, package: Package, name: str, function: Any, block: Any) -> None:
        self._package, self._name, self._message, self._block = package, name, function, block
        self._types: dict[str, TensorType] = {}
        self._states: dict[str, TensorType] = {}
        self._constants: dict[str, Weight | str] = {}
        self._operators = operators(function.opset)

    def read(self) -> Function:
        inputs = [self._input(each) for each in self._message.inputs]
        states = tuple(Named(name, kind) for name, kind in self._states.items())
        steps = [step for operation in self._block.operations if (step := self._operation(operation)) is not None]
        for name in self._block.outputs:
            if name not in self._types:
                raise self._fault(f"its output '{shown(name)}' is given by no operation")
        return Function(
            name=self._name,
            opset=self._message.opset,
            inputs=tuple(each for each in inputs if each is not None),
            states=states,
            outputs=tuple(Named(name, self._types[name]) for name in self._block.outputs),
            steps=tuple(_with_last_uses(steps, set(self._block.outputs))),
            constants={name: self._constants[name] for name in self._block.outputs if name in self._constants},
        )

    def _input(self, message: Any) -> Named | None:
        name, what = message.name, f"{self._where}: its input '{shown(message.name)}'"
        self._refuse_known(name)
        if message.type.WhichOneof("type") == "stateType":
            kind = tensor_type(message.type.stateType.wrappedType, what)
            if kind.shape is None or None in kind.shape:
                raise InputError(f"{what} is a state of no fixed shape, {kind}")
            self._states[name] = _possible(kind, what)
            return None
        self._types[name] = _possible(tensor_type(message.type, what), what)
        return Named(name, self._types[name])

    def _operation(self, message: Any) -> Step | None:
        what = self._what(message)
        if message.blocks:
            raise InputError(f"{what} has a program of its own, which is not evaluated")
        results = []
        for each in message.outputs:
            self._refuse_known(each.name)
            results.append(Named(each.name, tensor_type(each.type, what) if not _is_string(each.type) else _TEXT))
        step = None
        if message.type == _CONST or message.type in COMBINATIONS:
            self._constant(message, results, what)
        else:
            step = self._step(message, results, what)
        self._types.update({each.name: each.type for each in results})
        return step

    def _constant(self, message: Any, results: list[Named], what: str) -> None:
        if len(results) != 1:
            raise InputError(f"{what} has {len(results)} results: expected 1")
        values: dict[str, Weight | str] = {
            key: read_value(value, self._package, what) for key, value in message.attributes.items() if key != "name"
        }
        for key, argument in message.inputs.items():
            values[key] = self._constant_operand(argument, what)
        result = results[0]
        if message.type != _CONST:
            self._constants[result.name] = combine(message.type, values, result.type, what)
            return
        if set(values) != {"val"}:
            raise InputError(f"{what} has {shown(', '.join(sorted(values))) or 'nothing'}: expected val")
        value = values["val"]
        if isinstance(value, Weight) and (value.element != result.type.element or not result.type.admits(value.shape)):
            raise InputError(f"{what} is {result.type}, its value {value.element.name} {list(value.shape)}")
        self._constants[result.name] = value

    def _constant_operand(self, argument: Any, what: str) -> Weight | str:
        bindings = argument.arguments
        if len(bindings) != 1:
            raise InputError(f"{what} has an operand of {len(bindings)} values: expected 1")
        if bindings[0].WhichOneof("binding") == "value":
            return read_value(bindings[0].value, self._package, what)
        found = self._constants.get(bindings[0].name)
        if found is None:
            raise InputError(f"{what} takes '{shown(bindings[0].name)}', which is no constant given before it")
        return found

    def _step(self, message: Any, results: list[Named], what: str) -> Step:
        operands: dict[str, Operand | list[Operand]] = {}
        for key, argument in message.inputs.items():
            each = [self._operand(binding, what) for binding in argument.arguments]
            if key != LIST and len(each) != 1:
                raise InputError(f"{what} has {len(each)} values as its {shown(key)}: expected 1")
            operands[key] = each if key == LIST else each[0]
        for result in results:
            _possible(result.type, what)
        if message.type in (READ_STATE, WRITE_STATE):
            return self._state_step(message, operands, results, what)
        operator = self._operators[message.type]
        if faults := sorted(set(operands) - operator.operands):
            raise InputError(f"{what} has operands that are not evaluated: {shown(', '.join(faults))}")
        if faults := sorted(operator.required - set(operands)):
            raise InputError(f"{what} lacks its {', '.join(faults)}")
        self._refuse_mixed(operator, operands, what)
        return Step(message.type, _name(message), operator, operands, tuple(results))

    def _operand(self, binding: Any, what: str) -> Operand:
        if binding.WhichOneof("binding") == "value":
            return read_value(binding.value, self._package, what)
        name = binding.name
        if name in self._constants:
            return self._constants[name]
        if name not in self._types and name not in self._states:
            raise InputError(f"{what} takes '{shown(name)}', which nothing before it gives")
        return Reference(name)

    def _state_step(self, message: Any, operands: dict[str, Any], results: list[Named], what: str) -> Step:
        """read_state(input) gives the content; write_state(input, data) gives nothing."""
        is_write = message.type == WRITE_STATE
        state = operands.get("input")
        if set(operands) != ({"input", "data"} if is_write else {"input"}) or not isinstance(state, Reference):
            raise InputError(f"{what} has the operands {shown(', '.join(sorted(operands)))}")
        if state.name not in self._states or len(results) != (0 if is_write else 1):
            raise InputError(f"{what} is of '{shown(state.name)}', which is no state, or gives {len(results)} values")
        kind = self._states[state.name]
        other = self._type_of(operands["data"]) if is_write else results[0].type
        if other != kind:
            raise InputError(f"{what} is of a state {kind}: expected the same, found {other}")
        return Step(message.type, _name(message), None, operands, tuple(results))

    def _refuse_mixed(self, operator: Operator, operands: Mapping[str, Any], what: str) -> None:
        """Operands that must be of one element type."""
        for key in operands:
            for each in operands[key] if key == LIST else [operands[key]]:
                if isinstance(each, Reference) and each.name in self._states:
                    raise InputError(f"{what} takes the state '{shown(each.name)}' without reading it")
        alike = {
            self._type_of(each).element.name
            for key in operator.alike
            if key in operands
            for each in (operands[key] if key == LIST else [operands[key]])
        }
        if len(alike) > 1:
            raise InputError(f"{what} mixes {' and '.join(sorted(alike))}")

    def _type_of(self, operand: Operand) -> TensorType:
        if isinstance(operand, Reference):
            return self._types.get(operand.name) or self._states[operand.name]
        return _TEXT if isinstance(operand, str) else TensorType(operand.element, operand.shape)

    def _refuse_known(self, name: str) -> None:
        if not name or name in self._types or name in self._states:
            raise self._fault(f"the name '{shown(name)}' is given twice" if name else "a value has no name")

    @property
    def _where(self) -> str:
        return f"{self._package.path}: function '{shown(self._name)}'"

    def _what(self, message: Any) -> str:
        return f"{self._where}: operation '{_name(message)}' ({message.type})"

    def _fault(self, sentence: str) -> InputError:
        return InputError(f"{self._where}: {sentence}")


def _name(message: Any) -> str:
    """An operation is called as its first result, or as its attribute says."""
    if message.outputs:
        return shown(message.outputs[0].name)
    strings = message.attributes["name"].immediateValue.tensor.strings.values if "name" in message.attributes else ()
    return shown(strings[0]) if strings else "?"


def _possible(kind: TensorType, what: str) -> TensorType:
    if kind.known_size > MAX_NUMBERS:
        raise InputError(f"{what} is {kind}: more than {MAX_NUMBERS} numbers in one tensor are not evaluated")
    return kind


def _flat(operands: Iterable[Operand | list[Operand]]) -> Iterator[Operand]:
    for each in operands:
        yield from each if isinstance(each, list) else [each]


def _with_last_uses(steps: list[Step], kept: set[str]) -> Iterator[Step]:
    """The same steps, each of which knows what may be forgotten after it."""
    found: list[Step] = []
    seen = set(kept)
    for step in reversed(steps):
        names = {*step.uses(), *(each.name for each in step.results)} - seen
        seen |= names
        found.append(Step(step.kind, step.name, step.operator, step.operands, step.results, tuple(sorted(names))))
    return reversed(found)


def _is_string(message: Any) -> bool:
    return message.WhichOneof("type") == "tensorType" and message.tensorType.dataType == 2
