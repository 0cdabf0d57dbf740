"""Compares artifacts with the weight graph they were made from: run, measure, judge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..convert.errors import UsageError
from ..convert.model.dtypes import Float32
from ..convert.model.graph import WeightGraph
from ..convert.progress import SILENT, Progress
from ..convert.units import format_size
from ..targets.target import Artifact
from .gates import GateResult, at_most, judge, limits_of, verdict
from .isolate import run_job
from .jobs import FIND_TARGET, CacheCheck, Job, Outcome, Status
from .metrics import Metrics, PromptScore, score_prompt, summarize
from .prompts import EncodedPrompt, Prompt, encode_prompts
from .reference import GreedyRun, Reference, compute_reference
from .results import ArtifactResult, GreedyCheck, Report, Verdict, describe_environment

_N_CACHE_PROMPTS = 2
_CACHE_MIN_TOKENS = 12  # the chunks of a cache check, and one token after them
_N_GREEDY_PROMPTS = 4
_N_GREEDY_TOKENS = 32
_PROBE_MAX_TOKENS = 128


def validate(
    artifacts: Sequence[Artifact],
    graph: WeightGraph,
    *,
    prompts: Sequence[Prompt],
    threads: int,
    time_limit_s: float = 1800.0,
    max_size: int | None = None,
    progress: Progress = SILENT,
    find_target: str = FIND_TARGET,
) -> Report:
    """Runs every artifact in a process of its own and compares it with the graph's own logits.

    `max_size` is the budget of each artifact in bytes, `time_limit_s` what each may take. The logits of one
    artifact and of the reference lie in the temporary folder meanwhile: tokens x vocabulary x 4 bytes each.
    Raises: UsageError or InputError for prompts or artifacts that cannot be compared; DiskError for a full
    temporary folder. What is wrong with an artifact is in its result.
    """
    if not artifacts:
        raise UsageError("no artifact was given to validate")
    for artifact in artifacts:
        limits_of(artifact.class_name, is_moe=graph.config.moe is not None)
    encoded = encode_prompts(prompts, graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
    with tempfile.TemporaryDirectory(prefix="lfm-validate-") as name:
        session = _Session(
            graph=graph,
            prompts=encoded,
            cache_prompts=_spread(encoded, _N_CACHE_PROMPTS, least=_CACHE_MIN_TOKENS),
            greedy_prompts=_spread(encoded, _N_GREEDY_PROMPTS, least=1),
            folder=Path(name),
            threads=threads,
            time_limit_s=time_limit_s,
            max_size=max_size,
            progress=progress,
            find_target=find_target,
        )
        reference = session.reference()
        results = tuple(session.check(artifact, reference) for artifact in artifacts)
    return Report(graph.name, results, describe_environment(threads=threads))


def _spread(prompts: Sequence[EncodedPrompt], n: int, *, least: int) -> tuple[int, ...]:
    """Indices of up to n prompts of different lengths, none so long that running it again costs much."""
    fit = [i for i, prompt in enumerate(prompts) if least <= len(prompt.token_ids) <= _PROBE_MAX_TOKENS]
    by_length = sorted(fit, key=lambda i: len(prompts[i].token_ids))
    return tuple(by_length[(2 * k + 1) * len(fit) // (2 * n)] for k in range(min(n, len(fit))))


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What is the same for all artifacts of one validation."""

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    cache_prompts: tuple[int, ...]
    greedy_prompts: tuple[int, ...]
    folder: Path
    threads: int
    time_limit_s: float
    max_size: int | None
    progress: Progress
    find_target: str

    def reference(self) -> Reference:
        folder = self.folder / "reference"
        folder.mkdir()
        self._start(f"running the checkpoint itself on {len(self.prompts)} prompts")
        return compute_reference(
            self.graph,
            self.prompts,
            folder,
            greedy_prompts=self.greedy_prompts,
            n_greedy=_N_GREEDY_TOKENS,
            progress=self.progress,
        )

    def check(self, artifact: Artifact, reference: Reference) -> ArtifactResult:
        try:
            size_bytes = artifact.size_bytes
        except OSError as error:
            broken = Outcome(status=Status.FAILED, message=f"a file of the artifact cannot be read: {error}")
            return self._result(artifact, 0, broken, [], None)
        scores: list[PromptScore] = []

        def score(index: int, logits: Float32) -> None:
            scores.append(score_prompt(self.prompts[index], reference.logits(index), logits))
            self.progress.advance(1)

        self._start(f"running {artifact.path.name}")
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            outcome = run_job(self._job(artifact), Path(name), time_limit_s=self.time_limit_s, on_logits=score)
        greedy = compare_greedy(reference.greedy, outcome.greedy) if outcome.greedy else None
        return self._result(artifact, size_bytes, outcome, scores, greedy)

    def _start(self, sentence: str) -> None:
        self.progress.note(sentence)
        self.progress.start(sentence, len(self.prompts), "prompts")

    def _job(self, artifact: Artifact) -> Job:
        return Job(
            artifact=artifact,
            find_target=self.find_target,
            threads=self.threads,
            vocab_size=self.graph.config.vocab_size,
            prompts=tuple(prompt.token_ids for prompt in self.prompts),
            cache_prompts=self.cache_prompts,
            greedy_prompts=self.greedy_prompts,
            n_greedy=_N_GREEDY_TOKENS,
            stop=self.graph.config.eos_token_ids,
        )

    def _result(
        self,
        artifact: Artifact,
        size_bytes: int,
        outcome: Outcome,
        scores: Sequence[PromptScore],
        greedy: GreedyCheck | None,
    ) -> ArtifactResult:
        metrics = summarize(scores) if len(scores) == len(self.prompts) else None
        gates = self._gates(artifact, metrics, outcome.cache)
        found, message = _decide(outcome, gates, size_bytes, self.max_size)
        return ArtifactResult(
            artifact=artifact,
            backend=outcome.backend,
            verdict=found,
            size_bytes=size_bytes,
            budget_bytes=self.max_size,
            metrics=metrics,
            gates=tuple(gates),
            cache=outcome.cache,
            greedy=greedy,
            message=message,
        )

    def _gates(self, artifact: Artifact, metrics: Metrics | None, cache: CacheCheck | None) -> list[GateResult]:
        is_moe = self.graph.config.moe is not None
        gates = [] if metrics is None else judge(metrics, artifact.class_name, is_moe=is_moe)
        if cache is not None:
            limit = limits_of(artifact.class_name, is_moe=is_moe).cache_kld
            gates.append(at_most("cache_stepwise_kld", cache.stepwise_kld, limit))
            gates.append(at_most("cache_reset_kld", cache.reset_kld, limit))
        return gates


def _decide(
    outcome: Outcome, gates: Sequence[GateResult], size_bytes: int, max_size: int | None
) -> tuple[Verdict, str]:
    """The verdict and the sentence that explains it. Quality is worse than size; a size needs no run."""
    too_large = ""
    if max_size is not None and size_bytes > max_size:
        too_large = f"{format_size(size_bytes)} ({size_bytes} bytes) is over the budget of {max_size} bytes"
    if outcome.status is Status.FAILED:
        found, reasons = Verdict.FAIL, [outcome.message]
    elif outcome.status is Status.SKIPPED:
        found, reasons = Verdict.SKIPPED, [outcome.message]
    else:
        found = Verdict(verdict(gates))
        reasons = [gate.sentence for gate in gates if not gate.passed]
    if too_large and found is not Verdict.FAIL:
        found = Verdict.BUDGET
    return found, "; ".join(filter(None, [too_large, *reasons]))


def compare_greedy(reference: Sequence[GreedyRun], artifact: Sequence[Sequence[int]]) -> GreedyCheck:
    """How far greedy runs follow the reference's."""
    shares, gaps = [], []
    for run, tokens in zip(reference, artifact, strict=True):
        n = len(run.tokens)
        same = next((i for i in range(n) if run.tokens[i : i + 1] != tuple(tokens[i : i + 1])), n)
        shares.append(same / n)
        if same < n:
            gaps.append(run.gaps[same])
    return GreedyCheck(
        n_prompts=len(shares),
        n_exact=shares.count(1.0),
        prefix_match=sum(shares) / len(shares),
        gap_at_divergence=max(gaps, default=None),
    )
