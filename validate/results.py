"""What a validation found, as typed records and as JSON."""

from __future__ import annotations

import enum
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..convert.errors import ExitCode
from ..targets.target import Artifact
from .budgets import BudgetCheck
from .experts import LayerExperts
from .floor import Floor
from .gates import GateResult, part_verdicts
from .localize import Location
from .memory import CONTEXT_TOKENS
from .metrics import Metrics, PromptScore, json_safe
from .probes import CacheCheck
from .weights import TensorError

# Of docs/report.schema.json; a field that is added leaves it as it is.
SCHEMA_VERSION = 1
# What the numbers depend on; those that are not installed are left out.
_PACKAGES = ("lfm-convert", "numpy", "tokenizers", "onnxruntime", "xllamacpp", "mlx", "mlx-lm")
# Tensors that a report names.
_N_TENSORS = 8


class Verdict(enum.StrEnum):
    """`FAIL` covers a runtime that broke; `BUDGET` is an artifact that is good but too large."""

    PASS = "pass"
    FAIL = "fail"
    BUDGET = "budget"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Continuation:
    """How one prompt goes on: the end of its text, what both say, then what checkpoint and artifact each say.

    `gap` is the lead, in logits, that the checkpoint's token had over its next best where the artifact left it;
    None if it never did.
    """

    prompt: str
    before: str
    same: str
    reference: str
    artifact: str
    gap: float | None


@dataclass(frozen=True)
class GreedyCheck:
    """Free-running greedy text against the reference's.

    `prefix_match` is the mean share of the reference's tokens before the first difference, `n_exact` how many
    prompts have none. `gap_at_divergence` is the largest gap of the continuations; None if none has one. Near-ties
    make this a description, not a gate.
    """

    n_prompts: int
    n_exact: int
    prefix_match: float
    gap_at_divergence: float | None
    continuations: tuple[Continuation, ...] = ()


@dataclass(frozen=True)
class Excerpt:
    """One of the worst positions as text: what was read, and what checkpoint and artifact would say next."""

    prompt: str
    position: int
    before: str
    reference: str
    artifact: str
    kld: float


@dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """One artifact: how it did and why. What it did not get to is None or empty.

    `metrics` compare it with the checkpoint, `execution` with the forward of its own `weights`, whose errors are
    worst first. `location` and `mistake` say where a failure comes from. `run_bytes` estimates what running takes
    with caches of `context` tokens.
    """

    artifact: Artifact
    backend: str
    verdict: Verdict
    size_bytes: int
    budgets: tuple[BudgetCheck, ...] = ()
    run_bytes: int | None = None
    context: int = CONTEXT_TOKENS
    metrics: Metrics | None = None
    execution: Metrics | None = None
    weights: tuple[TensorError, ...] = ()
    location: Location | None = None
    mistake: str = ""
    excerpts: tuple[Excerpt, ...] = ()
    scores: tuple[PromptScore, ...] = field(default=(), repr=False)
    gates: tuple[GateResult, ...] = ()
    cache: CacheCheck | None = None
    experts: Sequence[LayerExperts] = ()
    greedy: GreedyCheck | None = None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """The result as reports and manifests keep it; numbers that are not finite are null."""
        return {
            "path": str(self.artifact.path),
            "target": self.artifact.target,
            "quant": self.artifact.quant,
            "class": self.artifact.class_name,
            "backend": self.backend,
            "verdict": self.verdict.value,
            "size_bytes": self.size_bytes,
            "budgets": [check.to_json() for check in self.budgets],
            "run_bytes": self.run_bytes,
            "context": self.context,
            "verdicts": part_verdicts(self.gates),
            "metrics": self.metrics.to_json() if self.metrics else None,
            "execution": self.execution.to_json() if self.execution else None,
            "weights": [json_safe(asdict(error)) for error in self.weights[:_N_TENSORS]],
            "location": json_safe(asdict(self.location)) if self.location else None,
            "mistake": self.mistake,
            "excerpts": [json_safe(asdict(excerpt)) for excerpt in self.excerpts],
            "gates": [json_safe(asdict(gate)) for gate in self.gates],
            "cache": json_safe(asdict(self.cache)) if self.cache else None,
            "experts": [json_safe(asdict(layer)) for layer in self.experts],
            "greedy": json_safe(asdict(self.greedy)) if self.greedy else None,
            "message": self.message,
        }


@dataclass(frozen=True)
class Report:
    """All artifacts of one model, and how far the model is from itself in the arithmetics they run in."""

    model: str
    results: tuple[ArtifactResult, ...]
    environment: dict[str, Any]
    floor: Floor | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The worst of the verdicts: quality before budget; nothing run at all is a missing backend."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.FAIL in verdicts:
            return ExitCode.QUALITY
        if Verdict.BUDGET in verdicts:
            return ExitCode.BUDGET
        return ExitCode.OK if Verdict.PASS in verdicts else ExitCode.MISSING_BACKEND

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "model": self.model,
            "artifacts": [result.to_json() for result in self.results],
            "floor": self.floor.to_json() if self.floor else [],
            "environment": self.environment,
        }


def describe_environment(*, threads: int) -> dict[str, Any]:
    """The machine and the versions the numbers were made with."""
    versions = {name: found for name in _PACKAGES if (found := _version(name)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": threads,
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name as the system tells it; Linux keeps it in /proc only."""
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
