"""What a validation found, as typed records and as JSON.

Whether an artifact agrees with the checkpoint and whether it fits its budgets are two verdicts: one says nothing of the
other, and both are shown.
"""

from __future__ import annotations

import enum
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..graph.clock import utc_stamp
from ..graph.errors import ExitCode
from ..graph.files import digest
from ..graph.packages import versions
from ..graph.text import without_folders
from ..targets.target import Artifact
from .budgets import BudgetCheck
from .experts import LayerExperts
from .floor import Distance
from .gate_words import gate_words
from .gates import Failure, GateResult, Part, failure_of, part_verdicts
from .localize import Location
from .memory import CONTEXT_TOKENS
from .metrics import Metrics, PromptScore, json_safe
from .probes import CacheCheck
from .stops import StopCheck
from .vectors import VectorMetrics
from .weights import TensorError

# Of docs/report.schema.json; a field that is added leaves it as it is.
SCHEMA_VERSION = 2
# Tensors that a report names.
_N_TENSORS = 8


class Verdict(enum.StrEnum):
    """Whether an artifact agrees with the checkpoint. `FAIL` covers a runtime that broke."""

    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "skipped"


class Fit(enum.StrEnum):
    """Whether an artifact is within its budgets; `FREE` if none was set for it."""

    FITS = "fits"
    OVER = "over"
    FREE = "free"


class Held(enum.StrEnum):
    """Whether an artifact was held to a baseline."""

    HELD = "held"
    NO_ENTRY = "no entry"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Continuation:
    """How one prompt goes on: the end of its text, what both say, then the checkpoint's next token and the artifact's rest.

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
    """Free-running greedy text against what the checkpoint would say at each place of it.

    `prefix_match` is the mean share of tokens before the first difference, `n_exact` how many prompts have none. `gap_at_divergence` is the largest gap of the continuations; None if none has one. Near-ties
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

    One that `is_foreign` was made from another checkpoint, and was not run; `ended` says why one was ended while it ran.
    `metrics` compare it with the checkpoint, `execution` with the forward of its own `weights`, whose errors are
    worst first, and `floor` is what rounding does to that. `standing` is its place among published artifacts.
    Of a model that gives vectors `vectors` and `vectors_execution` stand for `metrics` and `execution`.
    `location` and `mistake` say where a failure comes from. `run_bytes` estimates what
    running takes with caches of `context` tokens; `seconds` is what running and comparing it took, and `held_bytes` the
    most that its processes held beside the files they map. `not_judged` are
    parts of which something could not be read, and why; `notes` say what the verdict does not rest on. `model` is the
    checkpoint's name in a report of several.
    """

    artifact: Artifact
    backend: str
    verdict: Verdict
    size_bytes: int
    budgets: tuple[BudgetCheck, ...] = ()
    run_bytes: int | None = None
    context: int = CONTEXT_TOKENS
    metrics: Metrics | None = None
    standing: str = ""
    execution: Metrics | None = None
    floor: Distance | None = None
    vectors: VectorMetrics | None = None
    vectors_execution: VectorMetrics | None = None
    weights: tuple[TensorError, ...] = ()
    location: Location | None = None
    mistake: str = ""
    excerpts: tuple[Excerpt, ...] = ()
    scores: tuple[PromptScore, ...] = field(default=(), repr=False)
    gates: tuple[GateResult, ...] = ()
    cache: CacheCheck | None = None
    experts: Sequence[LayerExperts] = ()
    greedy: GreedyCheck | None = None
    stops: StopCheck | None = None
    is_foreign: bool = False
    ended: Failure | None = None
    baseline: Held = Held.NOT_ASKED
    seconds: float | None = None
    held_bytes: int | None = None
    not_judged: Mapping[Part, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    message: str = ""
    model: str = ""

    @property
    def title(self) -> str:
        """`gguf Q4_0`, after the checkpoint's name where there are several."""
        return f"{self.model} {self.artifact.target} {self.artifact.quant}".strip()

    @property
    def label(self) -> str:
        """What the artifact is called, after the checkpoint's name where there are several."""
        return f"{self.model} {self.artifact.label}".strip()

    @property
    def fit(self) -> Fit:
        if not self.budgets:
            return Fit.FREE
        return Fit.FITS if all(check.passed for check in self.budgets) else Fit.OVER

    @property
    def is_good(self) -> bool:
        """Whether it agrees with the checkpoint and is within its budgets."""
        return self.verdict is Verdict.PASS and self.fit is not Fit.OVER

    @property
    def sentence(self) -> str:
        """What there is to say of its verdict and of its budgets; empty if nothing is."""
        over = [check.sentence for check in self.budgets if not check.passed]
        return "; ".join(filter(None, [self.message, *over]))

    @property
    def failure(self) -> Failure | None:
        """The gravest thing wrong with it; what ended without a gate is broken, or was ended. None if it did not fail."""
        if self.verdict is not Verdict.FAIL:
            return None
        return failure_of(self.gates) or self.ended or Failure.BROKEN

    @property
    def path(self) -> str:
        """Its main file, seen from its folder."""
        return _relative(self.artifact.path, self.artifact.folder)

    @property
    def files(self) -> list[dict[str, Any]]:
        """path, bytes and sha256 of each of its files, as far as its manifest or reader noted them."""
        keys = ("path", "bytes", "sha256")
        return [{key: file[key] for key in keys if key in file} for file in self.artifact.entry.get("files", ())]

    @property
    def sha256(self) -> str:
        """One hash for all of its files, see `graph.files.digest`; empty if they were not hashed."""
        return digest({file["path"]: file["sha256"] for file in self.files if "sha256" in file})

    def with_gates(self, *gates: GateResult) -> ArtifactResult:
        """Held to more gates: one that is not kept fails it, with its sentence."""
        failed = [gate.sentence for gate in gates if not gate.passed]
        return replace(
            self,
            gates=(*self.gates, *gates),
            verdict=Verdict.FAIL if failed else self.verdict,
            message="; ".join(filter(None, [self.message, *failed])),
        )

    def with_note(self, sentence: str) -> ArtifactResult:
        return replace(self, message="; ".join(filter(None, [self.message, sentence])))

    def without_folders(self) -> ArtifactResult:
        """The same with nothing of where files lie: a runtime's complaint names its file."""
        folders = {str(found) for folder in (self.artifact.folder, Path.cwd()) for found in (folder, folder.absolute())}
        return replace(self, message=without_folders(self.message, folders))

    def to_json(self) -> dict[str, Any]:
        """The result as reports keep it: what was found, of which files, and how long that took."""
        named = {
            "label": self.artifact.label,
            "model": self.model,
            "path": self.path,
            "files": self.files,
            "sha256": self.sha256,
        }
        return {**named, "seconds": self.seconds, "held_bytes": self.held_bytes, **self.findings()}

    def findings(self) -> dict[str, Any]:
        """What manifests keep, too, since the same run gives it again; numbers that are not finite are null."""
        return {
            "target": self.artifact.target,
            "quant": self.artifact.quant,
            "class": self.artifact.class_name,
            "backend": self.backend,
            "verdict": self.verdict.value,
            "failure": self.failure.value if self.failure else None,
            "fit": self.fit.value,
            "baseline": self.baseline.value,
            "size_bytes": self.size_bytes,
            "budgets": [check.to_json() for check in self.budgets],
            "run_bytes": self.run_bytes,
            "context": self.context,
            "verdicts": part_verdicts(self.gates),
            "metrics": self.metrics.to_json() if self.metrics else None,
            "standing": self.standing,
            "execution": self.execution.to_json() if self.execution else None,
            "floor": self.floor.to_json() if self.floor else None,
            "vectors": self.vectors.to_json() if self.vectors else None,
            "vectors_execution": self.vectors_execution.to_json() if self.vectors_execution else None,
            "weights": [json_safe(asdict(error)) for error in self.weights[:_N_TENSORS]],
            "location": json_safe(asdict(self.location)) if self.location else None,
            "mistake": self.mistake,
            "excerpts": [json_safe(asdict(excerpt)) for excerpt in self.excerpts],
            "gates": [{**json_safe(asdict(gate)), "means": gate_words(gate.name)} for gate in self.gates],
            "cache": json_safe(asdict(self.cache)) if self.cache else None,
            "experts": [json_safe(asdict(layer)) for layer in self.experts],
            "greedy": json_safe(asdict(self.greedy)) if self.greedy else None,
            "stops": self.stops.to_json() if self.stops else None,
            "not_judged": {part.value: reason for part, reason in self.not_judged.items()},
            "notes": list(self.notes),
            "message": self.message,
        }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """What artifacts were compared on and with, and when: the suite or the name of a file of prompts, the time it began
    in UTC, and one sha256 for the checkpoint's files, see `graph.files.digest`; empty where nobody hashed them.
    `quantised_as` is what its weights are stored as, if not as floats.
    """

    suite: str = ""
    date: str = field(default_factory=utc_stamp)
    checkpoint_sha256: str = ""
    quantised_as: str | None = None
    tool: str = f"lfm-convert {__version__}"


@dataclass(frozen=True)
class Report:
    """All artifacts of one model."""

    model: str
    results: tuple[ArtifactResult, ...]
    environment: dict[str, Any]
    occasion: Occasion = field(default_factory=Occasion)

    @property
    def exit_code(self) -> ExitCode:
        """The worst of the verdicts: quality before budget; nothing run at all is a missing backend."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.FAIL in verdicts:
            return ExitCode.QUALITY
        if any(result.fit is Fit.OVER for result in self.results):
            return ExitCode.BUDGET
        return ExitCode.OK if Verdict.PASS in verdicts else ExitCode.MISSING_BACKEND

    @property
    def gives_vectors(self) -> bool:
        """Whether what was compared are vectors, and logits of none."""
        measured = [result for result in self.results if result.metrics or result.vectors]
        return bool(measured) and all(result.vectors for result in measured)

    @property
    def summary(self) -> str:
        """`3 of 4 artifacts pass, 1 is over budget, 1 has no baseline entry`."""
        over = sum(result.fit is Fit.OVER for result in self.results)
        unknown = sum(result.baseline is Held.NO_ENTRY for result in self.results)
        passed = sum(result.verdict is Verdict.PASS for result in self.results)
        parts = [f"{passed} of {len(self.results)} artifacts pass"]
        parts += [f"{over} {'is' if over == 1 else 'are'} over budget"] if over else []
        parts += [f"{unknown} {'has' if unknown == 1 else 'have'} no baseline entry"] if unknown else []
        return ", ".join(parts)

    def with_results(self, results: Iterable[ArtifactResult]) -> Report:
        return replace(self, results=tuple(results))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA_VERSION,
            "tool": self.occasion.tool,
            "date": self.occasion.date,
            "suite": self.occasion.suite,
            "model": self.model,
            "model_sha256": self.occasion.checkpoint_sha256,
            **({} if self.occasion.quantised_as is None else {"model_quantised_as": self.occasion.quantised_as}),
            "exit_code": int(self.exit_code),
            "artifacts": [result.to_json() for result in self.results],
            "environment": self.environment,
        }


def describe_environment(*, threads: int) -> dict[str, Any]:
    """The machine and the versions the numbers were made with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": threads,
        "versions": {"lfm-convert": __version__, **versions()},
    }


def _cpu() -> str:
    """The processor's name as the system tells it; Linux keeps it in /proc only."""
    try:
        lines: Sequence[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
