"""A target whose runtime is our own forward pass, so that the validator can be tested without any other.

An artifact is a JSON file: the checkpoint it came from, and what is wrong with it. Worker processes
import this module by name, with this folder's parent on PYTHONPATH.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.graph.errors import BackendError, UsageError
from lfm_convert.graph.graph import Layer, WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.graph.roles import Address, Role
from lfm_convert.graph.tensor import ArrayTensor, TensorView
from lfm_convert.targets.target import Artifact, Runner, Target

from support.planted import BUGS

FIND_TARGET = "support.fake_target:find_target"


def make_artifact(
    folder: Path, checkpoint: Path, name: str = "model", class_name: str = "f32", **fault: Any
) -> Artifact:
    """An artifact on disk. `fault` is what `FakeRunner` and `FakeTarget.run` understand."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"checkpoint": str(checkpoint), **fault}))
    return Artifact(
        path=path, folder=folder, target="fake", quant=name, class_name=class_name, files=(path,), entry={"a": [1]}
    )


def find_target(name: str) -> Target:
    return FakeTarget()


class FakeRunner(Runner):
    """The forward pass, with one of these faults.

    `bug`: one of `planted.BUGS`, in what is stored or in how it is run; `noise`: deviation added to all logits; `swap`: exchanges w1 and w3 of layer 0; `nan_after`: a NaN in the
    logits of every call after so many; `wide`: so many ids too many; `keep_state`: reset does nothing;
    `forget_conv`: the convolutions start anew at every call; `crash_at`, `hang_at`: the call it happens in; `eats`: bytes
    that the second call takes;
    `shared_state`: a second conversation goes on in the first; `padding_counts`: padded tokens are read as tokens;
    `alone`: it holds one conversation, takes one sequence, and shows no experts; `template`: of its chats; `stops`: ids by reader.
    """

    batches = ("left",)

    def __init__(self, fault: Mapping[str, Any]) -> None:
        graph = _stored(fault)
        self._graph = graph
        self._forward = BUGS[fault["bug"]].forward(graph) if "bug" in fault else Forward(graph)
        self._fault = fault
        self._calls = 0
        self._state = State(1)
        if fault.get("alone"):
            self.batches = ()

    @property
    def backend(self) -> str:
        return "fake 1.0"

    def reset(self) -> None:
        if not self._fault.get("keep_state"):
            self._state = State(1)

    def extend(self, token_ids: Sequence[int]) -> np.ndarray:
        self._calls += 1
        self._break()
        if self._fault.get("forget_conv"):
            self._state.sequences[0].conv.clear()
        logits = self._forward.extend(self._state, [list(token_ids)])[0]
        noise = np.random.default_rng(self._calls).normal(size=logits.shape) * self._fault.get("noise", 0.0)
        logits = logits + noise.astype(np.float32)
        if self._calls > self._fault.get("nan_after", self._calls):
            logits[-1, 3] = np.nan
        return np.pad(logits, ((0, 0), (0, self._fault.get("wide", 0))))

    def vectors(self, token_ids: Sequence[int]) -> np.ndarray:
        self._calls += 1
        self._break()
        (states,) = self._forward.states(State(1), [list(token_ids)])
        vectors = self._forward.vectors(states)
        noise = np.random.default_rng(self._calls).normal(size=vectors.shape) * self._fault.get("noise", 0.0)
        return vectors + noise.astype(np.float32)

    def another(self) -> FakeRunner | None:
        if self._fault.get("alone"):
            return None
        if self._fault.get("shared_state"):
            return self
        other = copy.copy(self)
        other.reset()
        return other

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[np.ndarray]:
        if self._fault.get("padding_counts"):
            longest = max(map(len, prompts))
            padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
            rows, _ = self._forward.prefill(padded)
            return [row[-len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
        return self._forward.prefill(prompts)[0]

    def experts(self, token_ids: Sequence[int]) -> dict[int, np.ndarray] | None:
        if self._fault.get("alone"):
            return None
        self._forward.routings.clear()
        self._forward.prefill([token_ids])
        return {layer: routing.experts for layer, routing in self._forward.routings.items()} or None

    def templates(self) -> Mapping[str, str]:
        return {"default": self._fault["template"]} if "template" in self._fault else {}

    def stops(self) -> Mapping[str, Sequence[int]]:
        return self._fault.get("stops", {})

    def _break(self) -> None:
        if self._calls == self._fault.get("crash_at"):
            print("weights are on fire", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._calls == self._fault.get("hang_at"):
            time.sleep(600)
        if self._calls == 2:
            self._eaten = np.ones(self._fault.get("eats", 0), np.uint8)
        if self._calls == self._fault.get("raise_at"):
            raise RuntimeError("no kernel for this row")

    def tokenize(self, text: str) -> list[int] | None:
        return BUGS[self._fault["bug"]].tokenize(self._graph, text) if "bug" in self._fault else None


class FakeTarget(Target):
    name = "fake"
    title = "Fake"
    extra = "fake"
    policies = ()
    default_quant = "f32"

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        fault = json.loads(artifact.path.read_text())
        if "absent" in fault:
            raise BackendError("the fake runtime is not installed: pip install fake")
        return FakeRunner(fault)

    def missing(self) -> str | None:
        return None

    def plan(self, graph: WeightGraph, quant: str) -> Any:
        raise UsageError("the fake target plans nothing")

    def write(self, *arguments: Any) -> None:
        raise NotImplementedError

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Any]) -> dict[str, bytes]:
        raise NotImplementedError

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return {(w.role, w.layer): w.view for w in _stored(json.loads(artifact.path.read_text())).weights()}


def _stored(fault: Mapping[str, Any]) -> WeightGraph:
    """The weights as the artifact stores them."""
    graph = open_graph(Path(fault["checkpoint"]))
    if fault.get("swap"):
        return swap_weights(graph)
    return BUGS[fault["bug"]].store(graph) if "bug" in fault else graph


def swap_weights(graph: WeightGraph) -> WeightGraph:
    """The graph with gate and up projection of its first layer exchanged: same shapes, other model."""
    first = graph.layers[0]
    gate, up = first.weights[Role.FFN_GATE], first.weights[Role.FFN_UP]
    swapped = {
        **first.weights,
        Role.FFN_GATE: replace(gate, view=ArrayTensor(gate.view.name, up.view.read())),
        Role.FFN_UP: replace(up, view=ArrayTensor(up.view.name, gate.view.read())),
    }
    return replace(graph, layers=(Layer(0, first.branches, swapped), *graph.layers[1:]))
