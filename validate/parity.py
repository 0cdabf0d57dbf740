"""Compares artifacts with the weight graph they were made from: run, measure, judge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..convert.errors import BackendError, LfmConvertError, UsageError
from ..convert.model.dtypes import Float32
from ..convert.model.forward import Forward
from ..convert.model.graph import WeightGraph
from ..convert.progress import SILENT, Progress
from ..targets.target import Artifact
from .budgets import UNLIMITED, BudgetCheck, Budgets
from .execution import Arithmetic, arithmetic_of, judge_execution, judge_experts
from .experts import LayerExperts, compare_experts, routed
from .floor import Floor, measure_floor
from .gates import GateResult, Part, at_most, judge, judge_cache, limits_of
from .isolate import run_job
from .jobs import FIND_TARGET, Job, Outcome, Status, resolve_target
from .localize import Location, locate
from .memory import run_bytes
from .metrics import Metrics, PromptScore, score_prompt, summarize
from .mistakes import explain
from .probes import CacheCheck
from .prompts import Chat, EncodedPrompt, Prompt, bos_token, chats_of, encode_prompts
from .reference import GreedyRun, Reference, compute_reference
from .results import ArtifactResult, Continuation, Excerpt, GreedyCheck, Report, Verdict, describe_environment
from .selection import cache_prompts, greedy_prompts, probe_prompts
from .suites import check_stored_ids
from .weights import TensorError, weight_errors

_N_GREEDY_TOKENS = 32
_EXCERPT_CHARACTERS = 60


def validate(
    artifacts: Sequence[Artifact],
    graph: WeightGraph,
    *,
    prompts: Sequence[Prompt],
    threads: int,
    time_limit_s: float = 1800.0,
    budgets: Budgets = UNLIMITED,
    progress: Progress = SILENT,
    find_target: str = FIND_TARGET,
) -> Report:
    """Runs every artifact in a process of its own and compares it with the graph's own logits.

    `budgets` are limits of size and memory, `time_limit_s` what each artifact may take. The logits of one
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
            chats=chats_of(prompts, graph.assets),
            cache_prompts=cache_prompts(encoded),
            greedy_prompts=greedy_prompts(encoded),
            probe=probe_prompts(encoded),
            folder=Path(name),
            threads=threads,
            time_limit_s=time_limit_s,
            budgets=budgets,
            progress=progress,
            find_target=find_target,
        )
        reference = session.reference()
        floor = measure_floor(graph, [encoded[i] for i in session.probe])
        results = tuple(session.check(artifact, reference, floor) for artifact in artifacts)
    return Report(graph.name, results, describe_environment(threads=threads), floor)


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What is the same for all artifacts of one validation. `probe` are the prompts whose logits tell execution
    from quantisation, and on which the floor is measured and a failure is traced; `chats` go by the prompts' ids.
    """

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    chats: Mapping[str, Chat]
    cache_prompts: tuple[int, ...]
    greedy_prompts: tuple[int, ...]
    probe: tuple[int, ...]
    folder: Path
    threads: int
    time_limit_s: float
    budgets: Budgets
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

    def check(self, artifact: Artifact, reference: Reference, floor: Floor) -> ArtifactResult:
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
        run = self._run(artifact, reference, own, floor)
        gates = self._gates(artifact, run, weights, arithmetic, floor)
        checks = self.budgets.check_artifact(self.graph.config, artifact)
        found, message = _decide(run.outcome, gates, checks)
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
            budgets=checks,
            run_bytes=run_bytes(self.graph.config, size_bytes, n_tokens=self.budgets.context),
            context=self.budgets.context,
            metrics=run.metrics,
            execution=run.execution,
            weights=weights,
            location=location,
            mistake=mistake,
            scores=tuple(run.scores),
            excerpts=self._excerpts(run.metrics),
            gates=tuple(gates),
            cache=self._name_prompts(run.outcome.cache),
            experts=run.experts,
            greedy=self._greedy(reference.greedy, run.outcome.greedy),
            message="; ".join(filter(None, [message, *causes])),
        )

    def _unread(self, artifact: Artifact, verdict: Verdict, message: str) -> ArtifactResult:
        return ArtifactResult(artifact=artifact, backend="", verdict=verdict, size_bytes=0, message=message)

    def _start(self, sentence: str) -> None:
        self.progress.note(sentence)
        self.progress.start(sentence, len(self.prompts), "prompts")

    def _run(self, artifact: Artifact, reference: Reference, own: WeightGraph, floor: Floor) -> _Run:
        """Runs the artifact; scores each prompt against the checkpoint, those of the probe also against `own`."""
        self._start(f"running {artifact.label}")
        forward = Forward(own)
        expected, _ = forward.prefill([self.prompts[i].token_ids for i in self.probe])
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
        is_whole, is_probed = len(scores) == len(self.prompts), len(fidelity) == len(self.probe)
        return _Run(
            outcome=outcome,
            scores=scores,
            metrics=summarize(scores, self.prompts, tie=floor.tie) if is_whole else None,
            execution=summarize(fidelity, self.prompts, tie=floor.tie) if is_probed else None,
            probe_logits=logits_of_probe,
            experts=compare_experts(outcome.experts, routed(forward), floor.routed),
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
            chats=tuple(self.chats.values()),
            bos=bos_token(self.graph.assets),
            expert_prompts=self.probe if self.graph.config.moe is not None else (),
        )

    def _gates(
        self, artifact: Artifact, run: _Run, weights: Sequence[TensorError], arithmetic: Arithmetic, floor: Floor
    ) -> list[GateResult]:
        is_moe = self.graph.config.moe is not None
        limits = limits_of(artifact.class_name, is_moe=is_moe)
        itself = floor.distances[arithmetic]
        worst, source = weights[0], f"class {artifact.class_name}: what its coarsest encoding loses of any tensor"
        gates = [at_most("weight_rms", worst.rel_rms, limits.weight_rms, Part.WEIGHTS, worst.where, source)]
        gates += self._tokenizer_gates(run.outcome)
        if run.execution is not None and run.execution.finite:
            gates += judge_execution(run.execution, arithmetic, is_moe=is_moe, floor=itself.metrics)
            gates += judge_experts(run.experts, arithmetic, itself.experts_agree)
        if run.metrics is not None:
            gates += judge(run.metrics, artifact.class_name, is_moe=is_moe, floor=itself.metrics)
        cache = self._name_prompts(run.outcome.cache)
        order = floor.distances[Arithmetic.FLOAT32].metrics
        return gates if cache is None else [*gates, *judge_cache(cache, limits, order)]

    def _tokenizer_gates(self, outcome: Outcome) -> list[GateResult]:
        texts = [prompt for prompt in self.prompts if prompt.text is not None]
        gates = []
        if outcome.encoded is not None:
            wrong = [prompt.id for prompt, ids in zip(texts, outcome.encoded, strict=True) if prompt.token_ids != ids]
            gates.append(_none_of("texts_encoded_otherwise", wrong, "every id equal"))
        if outcome.rendered is not None:
            expected = {prompt.id: prompt.text for prompt in texts}
            found = zip(self.chats, outcome.rendered, strict=True)
            wrong = [prompt for prompt, text in found if expected[prompt] != text]
            gates.append(_none_of("chats_rendered_otherwise", wrong, "every character equal"))
        return gates

    def _name_prompts(self, cache: CacheCheck | None) -> CacheCheck | None:
        """The same probes, with the prompts' ids for their places among those of the check."""
        if cache is None:
            return None
        names = [self.prompts[i].id for i in self.cache_prompts]
        return replace(cache, probes=tuple(replace(p, prompt=names[int(p.prompt)]) for p in cache.probes))

    def _say(self, ids: Sequence[int]) -> str:
        """The text of ids; the ids, if the model has no tokenizer."""
        tokenizer = self.graph.tokenizer
        return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)

    def _greedy(self, reference: Sequence[GreedyRun], artifact: Sequence[Sequence[int]]) -> GreedyCheck | None:
        prompts = [self.prompts[i] for i in self.greedy_prompts]
        return compare_greedy(prompts, reference, artifact, self._say) if artifact else None

    def _excerpts(self, metrics: Metrics | None) -> tuple[Excerpt, ...]:
        """The worst positions as text."""
        ids = {prompt.id: prompt.token_ids for prompt in self.prompts}
        return tuple(
            Excerpt(
                prompt=worst.prompt,
                position=worst.position,
                before=self._say(ids[worst.prompt][: worst.position + 1])[-_EXCERPT_CHARACTERS:],
                reference=self._say([worst.reference_top]),
                artifact=self._say([worst.artifact_top]),
                kld=worst.kld,
            )
            for worst in (metrics.worst if metrics else ())
        )

    def _explain(self, gates: Sequence[GateResult], own: WeightGraph, run: _Run) -> tuple[Location | None, str]:
        """Where a failed artifact's weights lose the model, and which known mistake its runtime makes."""
        failed = {gate.part for gate in gates if not gate.passed}
        prompts = [self.prompts[i].token_ids for i in self.probe]
        location = locate(self.graph, own, prompts) if failed & {Part.WEIGHTS, Part.EXECUTION, Part.QUALITY} else None
        if Part.EXECUTION not in failed:
            return location, ""
        allowed = next((gate.limit for gate in gates if gate.name == "execution_kld_mean"), 0.0)
        return location, explain(own, prompts, run.probe_logits, allowed=allowed)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What running one artifact gave."""

    outcome: Outcome
    scores: list[PromptScore]
    metrics: Metrics | None
    execution: Metrics | None
    probe_logits: list[Float32]
    experts: Sequence[LayerExperts]


def _none_of(name: str, wrong: Sequence[str], source: str) -> GateResult:
    return at_most(name, len(wrong), 0, Part.TOKENIZER, ", ".join(wrong[:3]), source)


def _decide(outcome: Outcome, gates: Sequence[GateResult], budgets: Sequence[BudgetCheck]) -> tuple[Verdict, str]:
    """The verdict and the sentence that explains it. Quality is worse than size; neither needs a run to be seen."""
    too_large = "; ".join(check.sentence for check in budgets if not check.passed)
    failed = [gate.sentence for gate in gates if not gate.passed]
    if failed or outcome.status is Status.FAILED:
        found = Verdict.FAIL
    elif too_large:
        found = Verdict.BUDGET
    else:
        found = Verdict.SKIPPED if outcome.status is Status.SKIPPED else Verdict.PASS
    return found, "; ".join(filter(None, [too_large, outcome.message, *failed]))


def compare_greedy(
    prompts: Sequence[EncodedPrompt],
    reference: Sequence[GreedyRun],
    artifact: Sequence[Sequence[int]],
    say: Callable[[Sequence[int]], str],
) -> GreedyCheck:
    """How far greedy runs follow the reference's; `say` turns ids into text."""
    shares, continuations = [], []
    for prompt, run, tokens in zip(prompts, reference, artifact, strict=True):
        n = len(run.tokens)
        same = next((i for i in range(n) if run.tokens[i : i + 1] != tuple(tokens[i : i + 1])), n)
        shares.append(same / n)
        texts = say(run.tokens), say(tokens[:n])
        split = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        continuations.append(
            Continuation(
                prompt=prompt.id,
                before=say(prompt.token_ids)[-_EXCERPT_CHARACTERS:],
                same=texts[0][:split],
                reference=texts[0][split:],
                artifact=texts[1][split:],
                gap=run.gaps[same] if same < n else None,
            )
        )
    return GreedyCheck(
        n_prompts=len(shares),
        n_exact=shares.count(1.0),
        prefix_match=sum(shares) / len(shares),
        gap_at_divergence=max((each.gap for each in continuations if each.gap is not None), default=None),
        continuations=tuple(continuations),
    )
