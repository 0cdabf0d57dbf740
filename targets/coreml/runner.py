"""Runs .mlpackages of our interface: by Apple's Core ML where there is one, elsewhere by the MIL evaluator.

| function | takes                                                    | gives                                  |
|----------|----------------------------------------------------------|----------------------------------------|
| decode   | input_ids int32 [1, 1], position int32 [1]               | logits float32 [1, 1, vocabulary]      |
| prefill  | input_ids int32 [1, C], position, n_tokens int32 [1]     | logits float32 [1, C, vocabulary]      |

Both also take `conv_state_in` and give `conv_state_out` where convolutions' windows are no state; states are shared.
Of several packages that are run in turn all but the last give `hidden_out` float16 [1, n, H] in place of logits, which
the next takes as `hidden_in` in place of ids; each has states of its own.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.errors import InputError, UsageError, needs_extra
from ..target import Runner
from .contract import check_chain, check_interface, shapes_of
from .evaluator.machine import KEPT_BYTES, Evaluator, States
from .evaluator.package import Package, open_package, shown
from .evaluator.program import Function, read_program
from .interface import (
    CONTEXT_KEY,
    CONV_IN,
    CONV_OUT,
    DECODE,
    HIDDEN_IN,
    HIDDEN_OUT,
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

    def __init__(self, package: Package, *, threads: int, precision: str, kept_bytes: int) -> None:
        self.evaluator = Evaluator(package, threads=threads, precision=precision, kept_bytes=kept_bytes)
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


@dataclass(frozen=True)
class _Stage:
    """One of the packages that are run in turn, loaded."""

    path: Path
    engine: Engine
    functions: Mapping[str, Function]

    @property
    def conv_shape(self) -> tuple[int, ...] | None:
        """Of what its convolutions remember between calls; None where that is no input."""
        return shapes_of(self.functions[DECODE].inputs).get(CONV_IN)


class CoremlRunner(Runner):
    """One conversation: its states, what the convolutions remember, and how many tokens it holds."""

    def __init__(self, *packages: Path, threads: int, precision: str = "float32") -> None:
        """Raises: InputError for a package that is damaged, of another interface, or that does not follow the one before."""
        opened = [open_package(path) for path in packages]
        kept_bytes = KEPT_BYTES // len(opened)
        self._stages = [_load(each, threads=threads, precision=precision, kept_bytes=kept_bytes) for each in opened]
        check_chain([(stage.path, stage.functions) for stage in self._stages])
        self._context = _context(opened[0])
        self._stops = [int(i) for i in _metadata(opened[0], STOPS_KEY).split(",") if i.isdecimal()]
        self.chunk = shapes_of(self._stages[0].functions[PREFILL].inputs)[IDS][1]
        self.n_vocab = shapes_of(self._stages[-1].functions[DECODE].outputs)[LOGITS][-1]
        self._begin()

    @property
    def backend(self) -> str:
        return self._stages[0].engine.name

    def _begin(self) -> None:
        self._states = [stage.engine.new_states() for stage in self._stages]
        shapes = [stage.conv_shape for stage in self._stages]
        self._conv_states = [None if shape is None else np.zeros(shape, np.float16) for shape in shapes]
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
        """What all packages give for at most a chunk of tokens, values of padding among them."""
        function = _function(ids)
        padded = ids if function == DECODE else ids + [0] * (self.chunk - len(ids))
        given: Arrays = {
            IDS: np.array([padded], np.int32),
            POSITION: np.array([self._position], np.int32),
            N_TOKENS: np.array([len(ids)], np.int32),
        }
        outputs: Arrays = {}
        for i, stage in enumerate(self._stages):
            conv_state = self._conv_states[i]
            if conv_state is not None:
                given[CONV_IN] = conv_state
            inputs = {each.name: given[each.name] for each in stage.functions[function].inputs}
            outputs |= stage.engine.call(function, inputs, self._states[i])
            if conv_state is not None:
                self._conv_states[i] = np.asarray(outputs[CONV_OUT], np.float16)
            if HIDDEN_OUT in outputs:
                given[HIDDEN_IN] = outputs[HIDDEN_OUT]
        self._position += len(ids)
        return outputs

    def stops(self) -> dict[str, list[int]]:
        """As the package's metadata tell an app."""
        return {"the package's metadata": self._stops}

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        """What each router's topk chooses for a prompt; None on Apple's runtime, which shows no inner values."""
        engines = [stage.engine for stage in self._stages if isinstance(stage.engine, EvaluatorEngine)]
        if not engines:
            return None
        routers: dict[str, dict[str, int]] = {DECODE: {}, PREFILL: {}}
        for stage in self._stages:
            for name, function in stage.functions.items():
                routers[name] |= _routers(function)
        chosen: dict[int, list[NDArray[Any]]] = {layer: [] for layer in routers[DECODE].values()}
        other = self.another()
        for engine in engines:
            engine.watch = {name for names in routers.values() for name in names}
        try:
            for part in self._parts(token_ids):
                outputs = other._call(part)
                for name, layer in routers[_function(part)].items():
                    chosen[layer].append(outputs[name][: len(part)])
        finally:
            for engine in engines:
                engine.watch = ()
        return {layer: np.concatenate(each).astype(np.int64) for layer, each in chosen.items()} or None


def _load(package: Package, *, threads: int, precision: str, kept_bytes: int) -> _Stage:
    """Raises: InputError for a package that is damaged, or of another interface."""
    if sys.platform == "darwin":
        functions = read_program(package)
        check_interface(package.path, functions)
        return _Stage(package.path, AppleEngine(package.path, functions), functions)
    engine = EvaluatorEngine(package, threads=threads, precision=precision, kept_bytes=kept_bytes)
    check_interface(package.path, engine.evaluator.functions)
    return _Stage(package.path, engine, engine.evaluator.functions)


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


def _metadata(package: Package, key: str) -> str:
    return str(package.spec.description.metadata.userDefined.get(key, ""))


def _context(package: Package) -> int | None:
    said = _metadata(package, CONTEXT_KEY)
    return int(said) if said.isdecimal() else None
