"""What a validation found, as typed records and as JSON."""

from __future__ import annotations

import enum
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..convert.errors import ExitCode
from ..targets.target import Artifact
from .gates import GateResult
from .jobs import CacheCheck
from .metrics import Metrics, json_safe

# What the numbers depend on; those that are not installed are left out.
_PACKAGES = ("lfm-convert", "numpy", "tokenizers", "onnxruntime", "xllamacpp")


class Verdict(enum.StrEnum):
    """`FAIL` covers a runtime that broke; `BUDGET` is an artifact that is good but too large."""

    PASS = "pass"
    FAIL = "fail"
    BUDGET = "budget"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class GreedyCheck:
    """Free-running greedy text against the reference's.

    `prefix_match` is the mean share of the reference's tokens before the first difference, `n_exact` how many
    prompts have none. `gap_at_divergence` is the largest lead, in logits, that the reference's token had where a
    run left it; None if none did. Near-ties make this a description, not a gate.
    """

    n_prompts: int
    n_exact: int
    prefix_match: float
    gap_at_divergence: float | None


@dataclass(frozen=True, kw_only=True)
class ArtifactResult:
    """One artifact: how it did and why. `metrics`, `cache` and `greedy` are None if it did not get that far."""

    artifact: Artifact
    backend: str
    verdict: Verdict
    size_bytes: int
    budget_bytes: int | None
    metrics: Metrics | None = None
    gates: tuple[GateResult, ...] = ()
    cache: CacheCheck | None = None
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
            "budget_bytes": self.budget_bytes,
            "metrics": self.metrics.to_json() if self.metrics else None,
            "gates": [json_safe(asdict(gate)) for gate in self.gates],
            "cache": json_safe(asdict(self.cache)) if self.cache else None,
            "greedy": json_safe(asdict(self.greedy)) if self.greedy else None,
            "message": self.message,
        }


@dataclass(frozen=True)
class Report:
    """All artifacts of one model."""

    model: str
    results: tuple[ArtifactResult, ...]
    environment: dict[str, Any]

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
            "model": self.model,
            "artifacts": [result.to_json() for result in self.results],
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
