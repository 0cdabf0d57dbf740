"""Compares artifacts with the weight graph they were made from: run, measure, judge."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from ..graph.errors import BackendError, LfmConvertError, UsageError
from ..graph.graph import WeightGraph
from ..graph.progress import SILENT, Progress
from ..targets.target import Artifact
from .budgets import UNLIMITED, Budgets
from .contexts import by_context
from .execution import arithmetic_of
from .experts import compare_experts
from .floor import Own, class_distance, run_with_floor
from .greedy import choices, compare_greedy
from .isolate import run_job
from .jobs import FIND_TARGET, Job, Outcome, resolve_target
from .judging import Judge, Run, Stored, planned_encodings
from .measure import Score, measure_of
from .memory import run_bytes
from .metrics import FirstRows, LogitRows, Metrics, PromptScore, summarize
from .probes import CacheCheck
from .prompts import (
    N_GREEDY_TOKENS,
    Chat,
    EncodedPrompt,
    Prompt,
    added_tokens_text,
    chats_of,
    encode_for,
    opening_text,
)
from .published import standing
from .reference import Reference
from .reference_cache import ReferenceCache, reference_of
from .results import ArtifactResult, Excerpt, Report, Verdict, describe_environment
from .selection import cache_prompts, end_prompt, greedy_prompts, probe_prompts, vector_prompts
from .steps import Step, Steps
from .stops import StopCheck
from .stored_logits import StoredLogits
from .suites import check_stored_ids
from .time_limit import time_limit_s
from .vectors import VectorMetrics, VectorScore, summarize_vectors
from .verdicts import ENDED, NOT_AT_HAND, decide, decoded_weights, foreign_result, not_judged, notes_of
from .weights import TensorError, refuse_misshapen, weight_errors

_EXCERPT_CHARACTERS = 60


def validate(
    artifacts: Sequence[Artifact],
    graph: WeightGraph,
    *,
    prompts: Sequence[Prompt],
    threads: int,
    time_limit_s: float | None = None,
    max_memory: int | None = None,
    budgets: Budgets = UNLIMITED,
    progress: Progress = SILENT,
    foreign: Mapping[Path, str] = MappingProxyType({}),
    find_target: str = FIND_TARGET,
    kept: ReferenceCache | None = None,
) -> Report:
    """Runs every artifact in a process of its own and compares it with the graph's own logits.

    `budgets` are limits of size and memory, `time_limit_s` what running each artifact may take, by default what its
    size lets expect, and `max_memory` the bytes its processes may hold beside the files they map; `foreign` says of
    artifacts, by path, why this is not the checkpoint they were made from, which they are not run for. Of a graph whose
    weights are not at hand the run must be `kept`, and stored weights are not judged. The logits of one artifact lie in
    the temporary folder prompt by prompt, and the reference's rows before the head, which are taken from `kept` if they
    are there.
    Raises: UsageError or InputError for prompts or artifacts that cannot be compared; DiskError for a full
    temporary folder. What is wrong with an artifact is in its result.
    """
    if not artifacts:
        raise UsageError("no artifact was given to validate")
    others = {
        a.path: foreign_result(a, foreign[a.path], budgets.check_artifact(graph.config, a))
        for a in artifacts
        if a.path in foreign
    }
    own = [artifact for artifact in artifacts if artifact.path not in others]
    if not own:
        return Report(graph.name, tuple(others.values()), describe_environment(threads=threads))
    encoded = encode_for(graph, prompts, note=progress.note)
    check_stored_ids(encoded, prompts, graph.tokenizer, graph.assets)
    is_talker = graph.config.vectors is None
    steps = Steps(progress, len(own))
    found: dict[Path, ArtifactResult] = {}
    for fitting, together in by_context(own, encoded, graph.config, find_target, note=progress.note):
        chats = chats_of(prompts, graph.assets, fitting) if is_talker else {}
        end = end_prompt(fitting, chats)
        with tempfile.TemporaryDirectory(prefix="lfm-validate-") as name:
            session = _Session(
                graph=graph,
                prompts=fitting,
                chats=chats,
                cache_prompts=cache_prompts(fitting) if is_talker else (),
                greedy_prompts=greedy_prompts(fitting, end) if is_talker else (),
                end_prompt=end,
                probe=(probe_prompts if is_talker else vector_prompts)(fitting),
                folder=Path(name),
                threads=threads,
                time_limit_s=time_limit_s,
                max_memory=max_memory,
                budgets=budgets,
                steps=steps,
                find_target=find_target,
            )
            reference = session.reference(kept)
            checked = [session.check(artifact, reference) for artifact in together]
            found |= session.with_greedy(checked, reference)
    results = tuple(found.get(artifact.path) or others[artifact.path] for artifact in artifacts)
    return Report(graph.name, results, describe_environment(threads=threads))


@dataclass(frozen=True)
class _Checked:
    """A result, and what the artifact said freely after each greedy prompt, which is compared for all of them at once."""

    result: ArtifactResult
    texts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What is the same for all artifacts of one validation. `probe` are prompts, or beginnings of some, whose logits
    tell execution from quantisation, and on which the floor is measured and a failure is traced; `chats` go by the
    prompts' ids.
    """

    graph: WeightGraph
    prompts: tuple[EncodedPrompt, ...]
    chats: Mapping[str, Chat]
    cache_prompts: tuple[int, ...]
    greedy_prompts: tuple[int, ...]
    end_prompt: tuple[int, int] | None
    probe: tuple[EncodedPrompt, ...]
    folder: Path
    threads: int
    time_limit_s: float | None
    max_memory: int | None
    budgets: Budgets
    steps: Steps
    find_target: str

    def reference(self, kept: ReferenceCache | None) -> Reference:
        note = self.steps.progress.note
        return reference_of(self.graph, self.prompts, kept, self.folder, note=note, on_prompt=self._prompts_run)

    def _prompts_run(self, done: int) -> None:
        self.steps.reach(Step("prompts", done, len(self.prompts), "prompts"))

    def check(self, artifact: Artifact, reference: Reference) -> _Checked:
        """One artifact's result; whatever is wrong with it is in there."""
        start = time.monotonic()
        self.steps.begin_artifact(artifact.label)
        checked = self._check(artifact, reference)
        seconds = round(time.monotonic() - start, 3)
        self.steps.end_artifact(seconds)
        return replace(checked, result=replace(checked.result, seconds=seconds))

    def with_greedy(self, checked: Sequence[_Checked], reference: Reference) -> dict[Path, ArtifactResult]:
        """Results by path, with how far each artifact's free-running text is the checkpoint's, which is run once."""
        said = [each for each in checked if each.texts and self.graph.is_at_hand]
        if said:
            self.steps.reach(Step("greedy text"))
        prompts = [self.prompts[i] for i in self.greedy_prompts]
        read = [prompt.token_ids for prompt in prompts] * len(said)
        chosen = choices(reference.forward, read, [text for each in said for text in each.texts])
        found = {each.result.artifact.path: each.result for each in checked}
        for i, each in enumerate(said):
            its = chosen[i * len(prompts) : (i + 1) * len(prompts)]
            greedy = compare_greedy(prompts, its, each.texts, self._say)
            found[each.result.artifact.path] = replace(each.result, greedy=greedy)
        return found

    def _check(self, artifact: Artifact, reference: Reference) -> _Checked:
        try:
            size_bytes = artifact.size_bytes
            self.steps.reach(Step("stored weights"))
            target = resolve_target(self.find_target, artifact.target)
            decoded, unread = decoded_weights(target, artifact)
            planned = planned_encodings(target, artifact, self.graph)
            errors: tuple[TensorError, ...] = ()
            if self.graph.is_at_hand:
                errors = weight_errors(self.graph, decoded, planned, is_whole=not unread)
            elif unread:
                raise BackendError(f"{NOT_AT_HAND}, and {unread}: give it by --reference")
            else:
                refuse_misshapen(self.graph, decoded)
        except BackendError as error:
            return _Checked(self._unread(artifact, Verdict.SKIPPED, str(error)))
        except (OSError, LfmConvertError) as error:
            return _Checked(self._unread(artifact, Verdict.FAIL, f"the artifact cannot be read: {error}"))
        self.steps.reach(Step("what rounding does"))
        arithmetic = arithmetic_of(target, artifact)
        judge = self._judge(reference)
        if unread:
            own = judge.checkpoint
            floor = class_distance(own, arithmetic, artifact.class_name)
        else:
            own, floor = run_with_floor(target.as_run(self.graph).with_weights(decoded), self.probe, arithmetic)
        stored = Stored(decoded=decoded, planned=planned, errors=errors, own=own, floor=floor, unread=unread)
        run = self._run(artifact, reference, stored, judge.checkpoint)
        gates, location, mistake = judge.explained(judge.gates(run, stored), run, stored)
        found, message = decide(run.outcome, gates)
        notes = notes_of(artifact, unread, has_any=bool(decoded), is_at_hand=self.graph.is_at_hand)
        causes = [
            location.sentence if location else "",
            mistake and f"the logits are those of a runtime where {mistake}",
            *notes,
        ]
        result = ArtifactResult(
            artifact=artifact,
            backend=run.outcome.backend,
            verdict=found,
            size_bytes=size_bytes,
            budgets=self.budgets.check_artifact(self.graph.config, artifact),
            run_bytes=run_bytes(self.graph.config, artifact, self.budgets.context),
            context=self.budgets.context,
            metrics=run.metrics,
            standing=standing(run.metrics, artifact.class_name, is_mixture=self.graph.config.is_mixture),
            execution=None if unread else self._summary(run.fidelity, floor.tie),
            vectors=run.vectors,
            vectors_execution=None if unread else run.own_vectors,
            floor=None if unread else floor,
            weights=errors,
            location=location,
            mistake=mistake,
            scores=tuple(score for score in run.scores if isinstance(score, PromptScore)),
            excerpts=self._excerpts(run.metrics),
            gates=tuple(gates),
            cache=run.cache,
            experts=run.experts,
            stops=run.stops,
            ended=ENDED.get(run.outcome.status),
            held_bytes=run.outcome.held_bytes,
            not_judged=not_judged(unread, is_at_hand=self.graph.is_at_hand),
            notes=notes,
            message="; ".join(filter(None, [message, *causes])),
        )
        return _Checked(result, run.outcome.greedy)

    def _unread(self, artifact: Artifact, verdict: Verdict, message: str) -> ArtifactResult:
        try:
            size_bytes, checks = artifact.size_bytes, self.budgets.check_artifact(self.graph.config, artifact)
        except OSError:
            size_bytes, checks = 0, ()
        return ArtifactResult(
            artifact=artifact, backend="", verdict=verdict, size_bytes=size_bytes, budgets=checks, message=message
        )

    def _run(self, artifact: Artifact, reference: Reference, stored: Stored, checkpoint: Own) -> Run:
        """Runs the artifact; scores each prompt against the checkpoint, the probe's also against its own weights."""
        own, measure = stored.own, measure_of(self.graph.config)
        probed = {prompt.id: k for k, prompt in enumerate(own.prompts)}
        scores: list[Score] = []
        fidelity: dict[int, Score] = {}
        probe_logits: dict[int, LogitRows] = {}

        def score(index: int, logits: StoredLogits) -> None:
            prompt = self.prompts[index]
            scores.append(measure.score(prompt, reference.logits(index), logits))
            if (k := probed.get(prompt.id)) is not None:
                kept_logits = FirstRows(logits.moved_to(kept), own.logits[k].shape[0])
                fidelity[k] = measure.score(own.prompts[k], own.logits[k], kept_logits)
                probe_logits[k] = kept_logits
            self._prompts_run(len(scores))

        kept = self.folder / "probe"  # until the next artifact's
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            outcome = run_job(
                self._job(artifact),
                Path(name),
                time_limit_s=self.time_limit_s or time_limit_s(self.graph, self.prompts, artifact.size_bytes),
                max_memory=self.max_memory,
                on_logits=score,
                on_step=self.steps.reach,
            )
        is_whole, is_probed = len(scores) == len(self.prompts), len(fidelity) == len(probed)
        n_routed = sum(len(self.prompts[i].token_ids) for i in self._expert_prompts)
        runs = (own, checkpoint) if outcome.experts and not stored.unread else ()
        routed = ({layer: rows[:n_routed] for layer, rows in each.routed.items()} for each in runs)
        faithful = [fidelity[k] for k in sorted(fidelity)] if is_probed else []
        return Run(
            outcome=outcome,
            scores=scores,
            metrics=self._summary(scores, stored.floor.tie) if is_whole else None,
            vectors=_of_vectors(scores) if is_whole else None,
            own_vectors=_of_vectors(faithful),
            fidelity=faithful,
            probe_logits=[probe_logits[k] for k in sorted(probe_logits)],
            experts=compare_experts(outcome.experts, *routed) if runs else (),
            cache=self._name_prompts(outcome.cache),
            stops=self._stops(outcome),
        )

    def _summary(self, scores: Sequence[Score], tie: float) -> Metrics | None:
        """The metrics of logits; None if there are none."""
        found = [score for score in scores if isinstance(score, PromptScore)]
        return summarize(found, self.prompts, tie=tie) if found else None

    def _judge(self, reference: Reference) -> Judge:
        own = reference.own(self.probe)
        return Judge(graph=self.graph, checkpoint=own, texts=self._texts, chats=tuple(self.chats), steps=self.steps)

    @cached_property
    def _texts(self) -> list[EncodedPrompt]:
        """What artifacts' tokenizers are given."""
        added = added_tokens_text(self.graph.tokenizer)
        return [prompt for prompt in (*self.prompts, *((added,) if added else ())) if prompt.text is not None]

    @cached_property
    def _expert_prompts(self) -> tuple[int, ...]:
        """Those of the probe that are no beginnings of longer ones, which come last."""
        if not self.graph.config.is_mixture:
            return ()
        at = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        return tuple(at[p.id] for p in self.probe if p.token_ids == self.prompts[at[p.id]].token_ids)

    def _job(self, artifact: Artifact) -> Job:
        return Job(
            artifact=artifact,
            find_target=self.find_target,
            threads=self.threads,
            n_outputs=self.graph.config.n_outputs,
            gives_vectors=self.graph.config.vectors is not None,
            is_per_token=self.graph.config.vectors is None or self.graph.config.vectors.is_per_token,
            prompts=tuple(prompt.token_ids for prompt in self.prompts),
            cache_prompts=self.cache_prompts,
            greedy_prompts=self.greedy_prompts,
            n_greedy=N_GREEDY_TOKENS,
            stop=self.graph.stop_ids,
            texts=tuple(prompt.text for prompt in self._texts if prompt.text is not None),
            chats=tuple(self.chats.values()),
            special_tokens=self.graph.assets.special_tokens,
            opening=opening_text(self.graph.tokenizer, self.graph.assets),
            expert_prompts=self._expert_prompts,
            end_prompt=self.end_prompt,
        )

    def _stops(self, outcome: Outcome) -> StopCheck | None:
        """Where the artifact's readers end a text; None if its files tell none of them."""
        if not outcome.stops:
            return None
        prompt = None if self.end_prompt is None else self.prompts[self.end_prompt[0]].id
        return StopCheck(checkpoint=self.graph.stop_ids, artifact=outcome.stops, prompt=prompt, chat=outcome.end)

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


def _of_vectors(scores: Sequence[Score]) -> VectorMetrics | None:
    """The metrics of vectors; None if there are none."""
    found = [score for score in scores if isinstance(score, VectorScore)]
    return summarize_vectors(found) if found else None
