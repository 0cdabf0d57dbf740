"""Runs an .mlpackage of our interface: by Apple's Core ML where there is one, elsewhere by the MIL evaluator.

| function | takes                                                    | gives                                  |
|----------|----------------------------------------------------------|----------------------------------------|
| decode   | input_ids int32 [1, 1], position int32 [1]               | logits float32 [1, 1, vocabulary]      |
| prefill  | input_ids int32 [1, C], position, n_tokens int32 [1]     | logits float32 [1, C, vocabulary]      |

Both also take `conv_state_in` and give `conv_state_out` where convolutions' windows are no state; states are shared.
The interface promises that nothing need be cleared between conversations: `reset` goes back to position 0 and leaves
everything else as it is, so that a package that does not keep the promise is found out.
"""

from __future__ import annotations

import copy
import platform
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.errors import InputError, UsageError, needs_extra
from ..target import Runner
from .evaluator.machine import Evaluator, States
from .evaluator.package import Package, open_package, shown
from .evaluator.program import Function, Named, read_program
from .interface import (
    CONTEXT_KEY,
    CONV_IN,
    CONV_OUT,
    DECODE,
    IDS,
    LOGITS,
    N_TOKENS,
    POSITION,
    PREFILL,
    STOPS_KEY,
)
from .library import library_version

_ROUTER = re.compile(r"layers_(\d+)_.*topk")

Arrays = dict[str, NDArray[Any]]


class Engine(ABC):
    """What computes a package's functions. `states` are its own kind of object, one a conversation."""

    name: str

    @abstractmethod
    def new_states(self) -> Any:
        """States of a conversation that has not begun."""

    @abstractmethod
    def call(self, function: str, inputs: Arrays, states: Any) -> Arrays:
        """The outputs of a function; its states are replaced."""


class EvaluatorEngine(Engine):
    """The MIL evaluator. Values inside a function that are in `watch` come with its outputs."""

    def __init__(self, package: Package, *, threads: int, precision: str) -> None:
        self.evaluator = Evaluator(package, threads=threads, precision=precision)
        self.watch: Collection[str] = ()
        self.name = f"MIL evaluator, {precision}, {library_version()}"

    def new_states(self) -> States:
        return self.evaluator.new_states()

    def call(self, function: str, inputs: Arrays, states: States) -> Arrays:
        return self.evaluator.run(function, inputs, states, watch=self.watch)


class AppleEngine(Engine):
    """Core ML itself, by coremltools: a model a function, and the state that one of them makes used by all of them.

    It chooses among all compute units, as it does for an app; not the Neural Engine if there are several states, which
    that does not take.
    Raises: InputError for a package that Core ML does not load.
    """

    def __init__(self, path: Path, functions: Mapping[str, Function]) -> None:
        with needs_extra("coreml", "Core ML"):
            import coremltools
        n_states = max(len(function.states) for function in functions.values())
        several, self._has_states = n_states > 1, n_states > 0
        units = coremltools.ComputeUnit.CPU_AND_GPU if several else coremltools.ComputeUnit.ALL
        self._path, self._models = path, {}
        for name in functions:
            try:
                model = coremltools.models.MLModel(str(path), function_name=name, compute_units=units)
            except Exception as error:  # the library raises its own kinds
                raise InputError(f"{path}: Core ML refuses it: {shown(str(error), 300)}") from None
            if model._framework_error is not None:  # what does not compile is loaded all the same, with a warning
                raise InputError(f"{path}: Core ML refuses it: {shown(str(model._framework_error), 300)}")
            self._models[name] = model
        which = "CPU and GPU" if several else "all units"
        self.name = f"Core ML, macOS {platform.mac_ver()[0]}, {which}, {library_version()}"

    def new_states(self) -> Any:
        return next(iter(self._models.values())).make_state() if self._has_states else None

    def call(self, function: str, inputs: Arrays, states: Any) -> Arrays:
        try:
            found: Arrays = self._models[function].predict(inputs, state=states)
        except Exception as error:  # the library raises its own kinds
            raise InputError(f"{self._path}: Core ML fails to run '{function}': {shown(str(error), 300)}") from None
        return found


class CoremlRunner(Runner):
    """One conversation: its states, what the convolutions remember, and how many tokens it holds."""

    def __init__(self, package: Path, *, threads: int, precision: str = "float32") -> None:
        """Raises: InputError for a package that is damaged, or of another interface."""
        opened = open_package(package)
        self._engine: Engine
        if sys.platform == "darwin":
            functions = read_program(opened)
            check_interface(package, functions)
            self._engine = AppleEngine(package, functions)
        else:
            self._engine = EvaluatorEngine(opened, threads=threads, precision=precision)
            functions = self._engine.evaluator.functions
            check_interface(package, functions)
        self._functions, self._context = functions, _context(opened)
        self._stops = [int(i) for i in _metadata(opened, STOPS_KEY).split(",") if i.isdecimal()]
        self.chunk = _shapes(functions[PREFILL].inputs)[IDS][1]
        self.n_vocab = _shapes(functions[DECODE].outputs)[LOGITS][-1]
        self._begin()

    @property
    def backend(self) -> str:
        return self._engine.name

    def _begin(self) -> None:
        self._states = self._engine.new_states()
        shape = _shapes(self._functions[DECODE].inputs).get(CONV_IN)
        self._conv_state = None if shape is None else np.zeros(shape, np.float16)
        self.reset()

    def reset(self) -> None:
        self._position = 0

    def another(self) -> CoremlRunner:
        """States lie outside the model, so that one serves any number of conversations."""
        other = copy.copy(self)
        other._begin()
        return other

    def extend(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.extend`: whole chunks and a padded one by `prefill`, one token alone by `decode`.

        Raises: UsageError for ids outside the vocabulary, none, or more than the context.
        """
        ids = [int(i) for i in token_ids]
        if not ids or min(ids) < 0 or max(ids) >= self.n_vocab:
            raise UsageError(f"token ids must be one or more of 0 … {self.n_vocab - 1}")
        if self._context is not None and self._position + len(ids) > self._context:
            raise UsageError(f"{self._position + len(ids)} tokens do not fit the package's context of {self._context}")
        return np.concatenate([self._call(part)[LOGITS][0, : len(part)] for part in self._parts(ids)])

    def _parts(self, ids: Sequence[int]) -> list[list[int]]:
        return [list(ids[start : start + self.chunk]) for start in range(0, len(ids), self.chunk)]

    def _call(self, ids: list[int]) -> Arrays:
        """The outputs for at most a chunk of tokens, those of padding among them."""
        function = _function(ids)
        padded = ids if function == DECODE else ids + [0] * (self.chunk - len(ids))
        inputs: Arrays = {
            IDS: np.array([padded], np.int32),
            POSITION: np.array([self._position], np.int32),
        }
        if function == PREFILL:
            inputs[N_TOKENS] = np.array([len(ids)], np.int32)
        if self._conv_state is not None:
            inputs[CONV_IN] = self._conv_state
        outputs = self._engine.call(function, inputs, self._states)
        if self._conv_state is not None:
            self._conv_state = np.asarray(outputs[CONV_OUT], np.float16)
        self._position += len(ids)
        return outputs

    def stops(self) -> dict[str, list[int]]:
        """As the package's metadata tell an app."""
        return {"the package's metadata": self._stops}

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        """What each router's topk chooses for a prompt; None on Apple's runtime, which shows no inner values."""
        if not isinstance(self._engine, EvaluatorEngine):
            return None
        routers = {name: _routers(function) for name, function in self._functions.items()}
        chosen: dict[int, list[NDArray[Any]]] = {layer: [] for layer in routers[DECODE].values()}
        other = self.another()
        self._engine.watch = {name for names in routers.values() for name in names}
        try:
            for part in self._parts(token_ids):
                outputs = other._call(part)
                for name, layer in routers[_function(part)].items():
                    chosen[layer].append(outputs[name][: len(part)])
        finally:
            self._engine.watch = ()
        return {layer: np.concatenate(each).astype(np.int64) for layer, each in chosen.items()} or None


def _function(ids: Sequence[int]) -> str:
    return DECODE if len(ids) == 1 else PREFILL


def _routers(function: Function) -> dict[str, int]:
    """The layer of each value that is a router's choice [n, top_k], by name."""
    found = {}
    for step in function.steps:
        match = _ROUTER.search(step.results[0].name) if step.kind == "topk" and len(step.results) == 2 else None
        if match:
            found[step.results[1].name] = int(match[1])
    return found


def _shapes(values: Sequence[Named]) -> dict[str, tuple[int, ...]]:
    """0 for a size that is not fixed."""
    return {each.name: tuple(size or 0 for size in each.type.shape or ()) for each in values}


def _metadata(package: Package, key: str) -> str:
    return str(package.spec.description.metadata.userDefined.get(key, ""))


def _context(package: Package) -> int | None:
    said = _metadata(package, CONTEXT_KEY)
    return int(said) if said.isdecimal() else None


def check_interface(path: Path, functions: Mapping[str, Function]) -> None:
    """Raises: InputError, in one sentence, for functions that are not those above."""
    if set(functions) != {DECODE, PREFILL}:
        raise InputError(
            f"{path}: its functions are {shown(', '.join(functions))}: expected {DECODE} and {PREFILL}, as ours have"
        )
    for name, function in functions.items():
        if fault := _fault(function, is_prefill=name == PREFILL):
            raise InputError(f"{path}: {name} {fault}")
    if _kinds(functions[DECODE].states) != _kinds(functions[PREFILL].states):
        raise InputError(f"{path}: its functions do not share their states")


def _kinds(values: Sequence[Named]) -> dict[str, str]:
    return {each.name: str(each.type) for each in values}


def _fault(function: Function, *, is_prefill: bool) -> str | None:
    """What a function has otherwise than the interface says."""
    inputs, outputs = _kinds(function.inputs), _kinds(function.outputs)
    n = _shapes(function.inputs).get(IDS, (1, 0))[-1] if is_prefill else 1
    expected = {IDS: f"int32 [1, {n}]", POSITION: "int32 [1]"} | ({N_TOKENS: "int32 [1]"} if is_prefill else {})
    for name, kind in expected.items():
        if inputs.get(name) != kind or n < 1:
            return f"takes {name} as {inputs.get(name, 'nothing')}: expected {kind}"
    if unknown := set(inputs) - set(expected) - {CONV_IN}:
        return f"takes {shown(', '.join(sorted(unknown)))}, of which it is not known what to give"
    if inputs.get(CONV_IN) != outputs.get(CONV_OUT) or 0 in _shapes(function.inputs).get(CONV_IN, (1,)):
        return f"takes {CONV_IN} {inputs.get(CONV_IN)} and gives {CONV_OUT} {outputs.get(CONV_OUT)}"
    if not re.fullmatch(rf"fp32 \[1, {n}, \d+\]", outputs.get(LOGITS, "")):
        return f"gives {LOGITS} as {outputs.get(LOGITS, 'nothing')}: expected fp32 [1, {n}, vocabulary]"
    return None
