"""What a step will take: seconds, memory and disk, from its plan; seconds as it took last time, where it was done before.

Times are of the order of magnitude only: what was measured on one machine, for a machine that is like it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...graph.graph import WeightGraph
from ...validate.memory import plan_run_bytes
from ...validate.own_memory import comparison_bytes
from ...validate.time_limit import products_per_token
from .prepared import Preparation
from .site import Step
from .steps import Calibrate, Convert, Reference, Validate

# Bytes of the checkpoint that a target writes of in a CPU second, and what it takes beside that on one core.
# Source: README.md and docs/executorch.md, on the models that are named there.
_BYTES_PER_S: Mapping[str, float] = {
    "gguf": 180e6, "onnx": 200e6, "mlx": 180e6, "executorch": 40e6, "coreml": 100e6,
    "compressed-tensors": 250e6,
}  # fmt: skip
_USUAL_BYTES_PER_S = 100e6
# Multiplications of our own forward pass in a CPU second, and how many such passes a comparison is worth.
_PRODUCTS_PER_S = 5e9
_RUNS = 4
# A process that is started, libraries that are imported, prompts that are rendered.
_START_S = 3.0
_CALIBRATION_TOKENS = 50_000  # of a text that was not read yet


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`is_known` says that the seconds are those of the last time. Units: seconds, bytes; `disk` is what stays."""

    seconds: float
    memory: int = 0
    disk: int = 0
    is_known: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "seconds_are": "measured" if self.is_known else "estimated",
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
        }


def cost_of(step: Step, preparation: Preparation, known: Mapping[str, float]) -> Cost:
    """`known` are the seconds of steps that were done before, by label."""
    found = _estimated(step, preparation)
    if step.label in known:
        return Cost(seconds=known[step.label], memory=found.memory, disk=found.disk, is_known=True)
    return found


def _estimated(step: Step, preparation: Preparation) -> Cost:
    n_tokens = preparation.n_tokens
    if isinstance(step, Convert):
        plan, n_bytes = step.artifact.plan, _source_bytes(step.artifact.graph)
        rate = _BYTES_PER_S.get(plan.target, _USUAL_BYTES_PER_S) * _cores()
        memory = plan.peak_memory_bytes()
        return Cost(seconds=_START_S + n_bytes / rate, memory=memory, disk=plan.total_bytes)
    if isinstance(step, Validate):
        artifact = step.conversion.artifact
        tokens = n_tokens[artifact.wanted.model.label]
        run = plan_run_bytes(artifact.graph.config, artifact.plan, artifact.budgets.context)
        run += comparison_bytes(artifact.graph)
        return Cost(seconds=2 * _START_S + _RUNS * _forward_s(artifact.graph, tokens), memory=run)
    if isinstance(step, Reference):
        graph = preparation.graphs[step.name]
        rows = n_tokens[step.name] * graph.config.hidden_size * 4
        seconds = _START_S + _forward_s(graph, n_tokens[step.name])
        return Cost(seconds=seconds, memory=comparison_bytes(graph), disk=rows)
    if isinstance(step, Calibrate):
        tokens = (step.settings.get("max_chunks") or 0) * step.settings.get("chunk_size", 0) or _CALIBRATION_TOKENS
        columns = sum(weight.view.n_cols for weight in step.graph.weights())
        seconds = _START_S + _forward_s(step.graph, tokens)
        return Cost(seconds=seconds, memory=comparison_bytes(step.graph), disk=4 * columns)
    return Cost(seconds=0.0)


def _forward_s(graph: WeightGraph, n_tokens: int) -> float:
    return n_tokens * products_per_token(graph) / (_PRODUCTS_PER_S * _cores())


def _source_bytes(graph: WeightGraph) -> int:
    return sum(weight.view.nbytes for weight in graph.weights())


def _cores() -> int:
    return os.cpu_count() or 1
