"""Compares artifacts with the weight graph they were made from: run, measure, judge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..convert.errors import BackendError, LfmConvertError, UsageError
from ..convert.model.dtypes import Float32
from ..convert.model.forward import Forward
from ..convert.model.graph import WeightGraph
from ..convert.progress import SILENT, Progress
from ..convert.units import format_size
from ..targets.target import Artifact
from .execution import Arithmetic, arithmetic_of, judge_execution
from .gates import GateResult, Part, at_most, judge, limits_of
from .isolate import run_job
from .jobs import FIND_TARGET, LONG_CHUNKS, Job, Outcome, Status, resolve_target
from .localize import Location, locate
from .memory import run_bytes
from .metrics import Metrics, PromptScore, score_prompt, summarize
from .mistakes import explain
from .prompts import EncodedPrompt, Prompt, encode_prompts
from .reference import GreedyRun, Reference, compute_reference
from .results import ArtifactResult, Excerpt, GreedyCheck, Report, Verdict, describe_environment
from .suites import check_stored_ids
from .weights import TensorError, weight_errors

_N_CACHE_PROMPTS = 2
_CACHE_MIN_TOKENS = 12  # the chunks of a cache check, and one token after them
_N_GREEDY_PROMPTS = 4
_N_GREEDY_TOKENS = 32
_PROBE_MAX_TOKENS = 128
_PROBE_TOKENS = 512
_EXCERPT_CHARACTERS = 60


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
    check_stored_ids(encoded, graph.tokenizer)
    with tempfile.TemporaryDirectory(prefix="lfm-validate-") as name:
        session = _Session(
            graph=graph,
            prompts=encoded,
            cache_prompts=(*_spread(encoded, _N_CACHE_PROMPTS, least=_CACHE_MIN_TOKENS), *_longest(encoded)),
            greedy_prompts=_spread(encoded, _N_GREEDY_PROMPTS, least=1),
            probe=_probe(encoded),
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


def _longest(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """The shortest prompt that the long chunks of the cache check fit in, if there is one."""
    long = [i for i, prompt in enumerate(prompts) if len(prompt.token_ids) > sum(LONG_CHUNKS)]
    return tuple(sorted(long, key=lambda i: len(prompts[i].token_ids))[:1])


def _probe(prompts: Sequence[EncodedPrompt]) -> tuple[int, ...]:
    """Prompts, longest first among those that are not too long, up to a number of tokens; the shortest at least.

    What a runtime computes does not depend on the text, so that a few hundred positions tell it from quantisation.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
    chosen, room = [], _PROBE_TOKENS
    for i in order:
        n = len(prompts[i].token_ids)
        if n <= min(room, _PROBE_MAX_TOKENS):
            chosen.append(i)
            room -= n
    return tuple(sorted(chosen or order[-1:]))


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What is the same for all artifacts of one validation. `probe` are the prompts whose logits tell execution
    from quantisation, and on which a failure is traced.
    """

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    cache_prompts: tuple[int, ...]
    greedy_prompts: tuple[int, ...]
    probe: tuple[int, ...]
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
        """One artifact's result; whatever is wrong with it is in there."""
        try:
            size_bytes = artifact.size_bytes
            target = resolve_target(self.find_target, artifact.target)
            decoded = target.read(artifact)
            weights = weight_errors(self.graph, decoded)
        except BackendError as error:
            return self._unread(artifact, Verdict.SKIPPED, str(error))
        except (OSError, LfmConvertError) as error:
            return self._unread(artifact, Verdict.FAIL, f"the artifact cannot be read: {error}")
        own = self.graph.with_weights(decoded)
        arithmetic = arithmetic_of(target, artifact.class_name)
        run = self._run(artifact, reference, own)
        gates = self._gates(artifact, run, weights, arithmetic)
        found, message = _decide(run.outcome, gates, size_bytes, self.max_size)
        location, mistake = self._explain(gates, own, run)
        causes = [
            location.sentence if location else "",
            mistake and f"the logits are those of a runtime where {mistake}",
        ]
        return ArtifactResult(
            artifact=artifact,
            backend=run.outcome.backend,
            verdict=found,
            size_bytes=size_bytes,
            budget_bytes=self.max_size,
            run_bytes=run_bytes(self.graph.config, size_bytes),
            metrics=run.metrics,
            execution=run.execution,
            weights=weights,
            location=location,
            mistake=mistake,
            scores=tuple(run.scores),
            excerpts=self._excerpts(run.metrics),
            gates=tuple(gates),
            cache=run.outcome.cache,
            greedy=compare_greedy(reference.greedy, run.outcome.greedy) if run.outcome.greedy else None,
            message="; ".join(filter(None, [message, *causes])),
        )

    def _unread(self, artifact: Artifact, verdict: Verdict, message: str) -> ArtifactResult:
        return ArtifactResult(
            artifact=artifact, backend="", verdict=verdict, size_bytes=0, budget_bytes=self.max_size, message=message
        )

    def _start(self, sentence: str) -> None:
        self.progress.note(sentence)
        self.progress.start(sentence, len(self.prompts), "prompts")

    def _run(self, artifact: Artifact, reference: Reference, own: WeightGraph) -> _Run:
        """Runs the artifact; scores each prompt against the checkpoint, those of the probe also against `own`."""
        self._start(f"running {artifact.label}")
        expected, _ = Forward(own).prefill([self.prompts[i].token_ids for i in self.probe])
        scores: list[PromptScore] = []
        fidelity: list[PromptScore] = []
        logits_of_probe: list[Float32] = []

        def score(index: int, logits: Float32) -> None:
            prompt = self.prompts[index]
            scores.append(score_prompt(prompt, reference.logits(index), logits))
            if index in self.probe:
                whole = replace(prompt, scored=None)
                fidelity.append(score_prompt(whole, expected[self.probe.index(index)], logits))
                logits_of_probe.append(logits)
            self.progress.advance(1)

        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            outcome = run_job(self._job(artifact), Path(name), time_limit_s=self.time_limit_s, on_logits=score)
        return _Run(
            outcome=outcome,
            scores=scores,
            metrics=summarize(scores, self.prompts) if len(scores) == len(self.prompts) else None,
            execution=summarize(fidelity, self.prompts) if len(fidelity) == len(self.probe) else None,
            probe_logits=logits_of_probe,
        )

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
            texts=tuple(prompt.text for prompt in self.prompts if prompt.text is not None),
        )

    def _gates(
        self, artifact: Artifact, run: _Run, weights: Sequence[TensorError], arithmetic: Arithmetic
    ) -> list[GateResult]:
        is_moe = self.graph.config.moe is not None
        limits = limits_of(artifact.class_name, is_moe=is_moe)
        worst = weights[0]
        gates = [at_most("weight_rms", worst.rel_rms, limits.weight_rms, Part.WEIGHTS, worst.where)]
        if run.outcome.encoded is not None:
            gates.append(self._tokenizer_gate(run.outcome.encoded))
        if run.execution is not None and run.execution.finite:
            gates += judge_execution(run.execution, arithmetic, is_moe=is_moe)
        if run.metrics is not None:
            gates += judge(run.metrics, artifact.class_name, is_moe=is_moe)
        cache = run.outcome.cache
        if cache is not None:
            gates.append(at_most("cache_stepwise_kld", cache.stepwise_kld, limits.cache_kld, Part.CACHE))
            gates.append(at_most("cache_reset_kld", cache.reset_kld, limits.cache_kld, Part.CACHE))
        return gates

    def _tokenizer_gate(self, encoded: Sequence[tuple[int, ...]]) -> GateResult:
        texts = [prompt for prompt in self.prompts if prompt.text is not None]
        wrong = [prompt.id for prompt, ids in zip(texts, encoded, strict=True) if prompt.token_ids != ids]
        return at_most("texts_encoded_otherwise", len(wrong), 0, Part.TOKENIZER, ", ".join(wrong[:3]))

    def _excerpts(self, metrics: Metrics | None) -> tuple[Excerpt, ...]:
        """The worst positions as text; as ids, if the model has no tokenizer."""

        def say(ids: Sequence[int]) -> str:
            tokenizer = self.graph.tokenizer
            return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)

        ids = {prompt.id: prompt.token_ids for prompt in self.prompts}
        return tuple(
            Excerpt(
                prompt=worst.prompt,
                position=worst.position,
                before=say(ids[worst.prompt][: worst.position + 1])[-_EXCERPT_CHARACTERS:],
                reference=say([worst.reference_top]),
                artifact=say([worst.artifact_top]),
                kld=worst.kld,
            )
            for worst in (metrics.worst if metrics else ())
        )

    def _explain(self, gates: Sequence[GateResult], own: WeightGraph, run: _Run) -> tuple[Location | None, str]:
        """Where a failed artifact's weights lose the model, and which known mistake its runtime makes."""
        failed = {gate.part for gate in gates if not gate.passed}
        prompts = [self.prompts[i].token_ids for i in self.probe]
        location = locate(self.graph, own, prompts) if failed & {Part.WEIGHTS, Part.EXECUTION, Part.QUALITY} else None
        mistake = explain(own, prompts, run.probe_logits) if Part.EXECUTION in failed else ""
        return location, mistake


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What running one artifact gave."""

    outcome: Outcome
    scores: list[PromptScore]
    metrics: Metrics | None
    execution: Metrics | None
    probe_logits: list[Float32]


def _decide(
    outcome: Outcome, gates: Sequence[GateResult], size_bytes: int, max_size: int | None
) -> tuple[Verdict, str]:
    """The verdict and the sentence that explains it. Quality is worse than size; neither needs a run to be seen."""
    too_large = ""
    if max_size is not None and size_bytes > max_size:
        too_large = f"{format_size(size_bytes)} ({size_bytes} bytes) is over the budget of {max_size} bytes"
    failed = [gate.sentence for gate in gates if not gate.passed]
    if failed or outcome.status is Status.FAILED:
        found = Verdict.FAIL
    elif too_large:
        found = Verdict.BUDGET
    else:
        found = Verdict.SKIPPED if outcome.status is Status.SKIPPED else Verdict.PASS
    return found, "; ".join(filter(None, [too_large, outcome.message, *failed]))


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
