"""The drive shaft: checkpoint → graph → plan → files → manifest → validation. Also the Python API."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..graph.adapters.adapter import AS_IT_IS, Adapting
from ..graph.adapters.merging import merge_adapters
from ..graph.errors import LfmConvertError, UsageError
from ..graph.files import digest
from ..graph.graph import WeightGraph
from ..graph.opening import open_graph
from ..graph.progress import SILENT, Progress
from ..graph.source.checkpoint import has_weights
from ..graph.units import format_size
from ..quantize.allotment.costs import jobs_within
from ..quantize.allotment.wanted import BITS, CODES, check_tuned, named, read_wanted
from ..targets import allotting
from ..targets.lossy import planned
from ..targets.naming import fit_name
from ..targets.plans import DEFAULT_BUDGET_BYTES, Plan
from ..targets.stream import DEFAULT_RANGE_BYTES, Execution, Profile
from ..targets.target import Artifact, Target, get_target, open_artifact
from .artifacts import find_artifacts, record, verified
from .destination import owned
from .manifest import hash_source, load_manifest, material_hashes
from .provenance import find_source, foreign, listed_hashes
from .source import Source, find_model
from .tuning import CodeTuning
from .writing import Writing

if TYPE_CHECKING:
    from ..validate.baseline import Baseline
    from ..validate.budgets import Budgets
    from ..validate.lines import Lines
    from ..validate.prompts import Prompt
    from ..validate.results import Report

_LEAST_BUDGET_BYTES = 32 << 20


@dataclass(frozen=True)
class Converted:
    """Result of `convert`: the folder, its artifacts, how they validated (None if not asked), where the time went."""

    folder: Path
    plans: tuple[Plan, ...]
    artifacts: tuple[Artifact, ...]
    report: Report | None = field(default=None, repr=False)
    profile: Profile = field(default_factory=Profile, repr=False)


def open_model(
    model: str | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    weights: bool = True,
    adapters: Adapting = AS_IT_IS,
    progress: Progress = SILENT,
) -> WeightGraph:
    """The weight graph of a folder, a GGUF file, a hub id, or the default model; see `find_model`, `open_graph`,
    `merge_adapters`.

    With `weights=False` a config will do: where the weights are there, their headers still say what they are stored in.
    """
    found = find_model(model, revision=revision, offline=offline, progress=progress)
    return open_source(found, weights=weights, adapters=adapters, progress=progress)


def open_source(
    source: Source, *, weights: bool = True, adapters: Adapting = AS_IT_IS, progress: Progress = SILENT
) -> WeightGraph:
    """The weight graph of a model that was found, with adapters merged into it: those given, else those found with it. Of
    a config alone no value is read.
    """
    if source.note:
        progress.note(source.note)
    adapters = adapters if adapters.choices else source.adapters
    base = open_artifact(source.path, name=source.name)
    if base is None:
        has = weights or has_weights(source.path)
        base = open_graph(source.path, name=source.name, weights=has, applied=adapters.folders)
    graph = merge_adapters(base, adapters, reads=weights)
    for note in graph.notes:
        progress.note(note)
    return graph


def plan(
    model: str | WeightGraph | None,
    *,
    target: str,
    quant: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    tune: Collection[str] = (),
) -> tuple[Plan, ...]:
    """What `convert` would write, one plan a quant. Works from a folder that holds only config.json.

    `quant` is a name, several, or `all`; without it the target's default. Of quants whose encodings are allotted, such as
    `auto-4.6GB`, and all others if `tune` has "bits", the option `statistics` is the folder that says what errors cost; it
    has the text that codes are tuned by, if `tune` has "codes".
    Raises: UsageError for an unknown target or quant, or a model the format cannot express.
    """
    graph = model if isinstance(model, WeightGraph) else open_model(model, weights=False)
    chosen = get_target(target).with_options(options or {})
    plans = tuple(planned(chosen, graph, name) for name in quants_of(chosen, quant, tune))
    if CODES not in tune:
        return plans
    return tuple(map(CodeTuning.of(chosen, graph, jobs=os.cpu_count() or 1).announce, plans))


def convert(
    model: str | WeightGraph | None = None,
    *,
    target: str,
    quant: str | Sequence[str] | None = None,
    out: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    tune: Collection[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    resume: bool = False,
    renews: Collection[str] = (),
    afresh: bool = False,
    source_hashes: Mapping[str, str] | None = None,
    written: Path | None = None,
    jobs: int | None = None,
    max_memory: int | None = None,
    validate_after: bool = True,
    validate_all: bool = False,
    comparison: Mapping[str, Any] | None = None,
    budgets: Budgets | None = None,
    range_bytes: int = DEFAULT_RANGE_BYTES,
    progress: Progress = SILENT,
) -> Converted:
    """Writes the artifacts of one target, then runs each and compares it with the checkpoint.

    `max_memory` and `range_bytes` are bytes, the first what each process may hold beside the files it maps; `jobs`
    defaults to the number of cores; `options` are the target's own, such as `{"refine": True}`; `tune` is as for `plan`:
    what errors cost is measured if it is not known yet, and codes are chosen. A plan that is over one
    of the `budgets` is refused before any weight is read.
    `comparison` is what `validate` takes; without anything else said, its suite is `smoke`. Artifacts that were there
    and have passed are compared again with `validate_all` only.
    Each artifact is published when it is whole. `skip_existing` leaves those that are there and are what this run
    would write; `resume` does too, and keeps what is written of one that fails half way for the next run to go on.
    `renews`, `afresh`, `source_hashes` and `written` are a release's, see `Writing`.
    Raises: any LfmConvertError, with a note of what was published; whatever happens, existing artifacts stay whole.
    """
    _refuse_none_at_all(jobs=jobs, range_bytes=range_bytes)
    jobs = jobs or os.cpu_count() or 1
    comparison = {"suite": "smoke", "max_memory": max_memory, **(comparison or {})}
    chosen = get_target(target).with_options(options or {})
    quants = quants_of(chosen, quant, tune, max_bytes=budgets.max_size if budgets else None)
    graph = model if isinstance(model, WeightGraph) else open_model(model, progress=progress)
    folder = Path(out if out is not None else default_folder(graph, chosen))
    is_tuned = CODES in tune or any(map(read_wanted, quants))
    if validate_after and is_tuned:  # for whose plan errors are measured, which takes minutes
        check_comparison(graph, comparison)
    within: dict[str, Any] = {"jobs": jobs, "max_memory": max_memory, "progress": progress}
    tuning = CodeTuning.of(chosen, graph, folder=Path(os.path.realpath(folder)), **within) if CODES in tune else None
    measure_costs(graph, chosen, quants, **within)
    plans = tuple(planned(chosen, graph, name) for name in quants)
    if tuning is not None:
        plans = tuple(map(tuning.announce, plans))
    budget = _budget(max_memory, plans)
    for each in plans:
        if strict:
            each.refuse_fallbacks()
        for fallback in each.fallbacks:
            progress.note(f"{each.quant}: '{fallback.tensor}' stored as {fallback.used}: {fallback.reason}")
    for note in dict.fromkeys(note for each in plans for note in each.notes):
        progress.note(note)
    if budgets is not None:
        budgets.refuse(graph.config, plans)
    if validate_after and not is_tuned:
        check_comparison(graph, comparison)
    run = Execution(jobs=jobs, budget_bytes=budget, range_bytes=range_bytes)
    published: list[Path] = []
    with _told(published):
        with owned(folder) as destination:
            Writing(
                target=chosen,
                graph=graph,
                plans=plans,
                destination=destination,
                run=run,
                progress=progress,
                overwrite=overwrite,
                skip_existing=skip_existing,
                resume=resume,
                renews=renews,
                afresh=afresh,
                source_hashes=source_hashes,
                written=written,
                tunes=nullcontext if tuning is None else tuning.carry_out,
                published=published,
            ).carry_out()
        artifacts = tuple(find_artifacts(folder, only={p.main_file for p in plans}))
        report = None
        left = [a for a in artifacts if validate_all or a.path in published or not _has_passed(a)]
        if validate_after and left:
            report = validate(
                left,
                reference=graph,
                other_reference=True,
                source_hashes=recorded_hashes(folder),
                budgets=budgets,
                progress=progress,
                **comparison,
            )
            record(report, progress=progress)
    return Converted(folder, plans, artifacts, report, run.profile)


def measure_costs(
    graph: WeightGraph,
    target: Target,
    quants: Iterable[str],
    *,
    jobs: int | None = None,
    max_memory: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Measures what errors cost, and keeps it with the statistics, of quants whose encodings are allotted.

    Raises: as `allotting.measure_costs`; UsageError for a limit of memory that is too little for it.
    """
    wanted = list(filter(None, map(read_wanted, quants)))
    within = jobs_within(graph.weights(), jobs or os.cpu_count() or 1, max_memory if wanted else None)
    for each in wanted:
        allotting.measure_costs(target, graph, each, jobs=within, progress=progress)


def default_folder(graph: WeightGraph, target: Target) -> str:
    """What the folder of a model's artifacts is called where nothing else is said."""
    return fit_name(graph.name, f"-{target.name.upper()}")


@contextmanager
def _told(published: Sequence[Path]) -> Iterator[None]:
    """Gives whatever ends a run early a note of what it has published."""
    try:
        yield
    except BaseException as error:
        if published:
            error.add_note(f"published before that: {', '.join(map(str, published))}")
        elif not isinstance(error, LfmConvertError):
            error.add_note("nothing was published")
        raise


def _has_passed(artifact: Artifact) -> bool:
    """Whether an artifact that was there already has a verdict that lets it be published."""
    found = artifact.entry.get("validation") or {}
    return found.get("verdict") == "pass" and found.get("fit") != "over"


def recorded_hashes(folder: Path) -> dict[str, str] | None:
    """The checkpoint's hashes as the manifest of this run has them, so that it is not read once more for them."""
    manifest = load_manifest(folder)
    return None if manifest is None else material_hashes(manifest.source)


def validate(
    artifacts: Sequence[Artifact | Path | str],
    *,
    reference: str | WeightGraph | None,
    adapters: Adapting = AS_IT_IS,
    suite: str = "standard",
    prompts: Path | None = None,
    text: Path | None = None,
    n_chunks: int | None = None,
    budgets: Budgets | None = None,
    lines: Lines | None = None,
    baseline: Baseline | None = None,
    require_baseline: bool = False,
    threads: int | None = None,
    time_limit_s: float | None = None,
    max_memory: int | None = None,
    other_reference: bool = False,
    source_hashes: Mapping[str, str] | None = None,
    reference_cache: Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Runs artifacts in their runtimes and compares them with the checkpoint they were made from.

    Without a reference it is looked for, see `find_source`. One whose files are not those that the artifact's manifest
    lists is a failure of the artifact, unless `other_reference` says that it is meant; `source_hashes` are the sha256
    of its files by path, if they are known already. `reference_cache` is a folder that keeps the checkpoint's own run
    for the next time, see `ReferenceCache`; with what it keeps artifacts are compared where the checkpoint is not at
    hand. `time_limit_s` is what running one artifact may take, `max_memory` the bytes that each process may hold beside
    the files it maps.

    `adapters` are merged into the reference, unless it is a graph: they must be those that the manifest names.
    A path may be an artifact's file, or a folder: then all artifacts of its manifest are meant. `suite`, `prompts`
    and `text` choose what they are run on, see `choose_prompts`; a checkpoint without tokenizer draws its own.
    They are held to `lines` and to a `baseline`, if there are any; `require_baseline` fails one that has no entry.
    Raises: InputError for a file that is not what its manifest says.
    """
    from ..validate.baseline import hold_to_baseline
    from ..validate.budgets import UNLIMITED
    from ..validate.lines import hold_to_lines
    from ..validate.own_memory import refuse_too_little
    from ..validate.parity import validate as compare
    from ..validate.reference_cache import ReferenceCache, refuse_a_file
    from ..validate.results import Occasion
    from ..validate.suites import name_suite

    _refuse_none_at_all(artifacts=len(artifacts), threads=threads, time_limit_s=time_limit_s, max_memory=max_memory)
    refuse_a_file(reference_cache)
    occasion = Occasion()
    found: list[Artifact] = []
    for each in artifacts:
        found += [each] if isinstance(each, Artifact) else verified(find_artifacts(Path(each)), progress)
    if reference is None:
        graph, source_hashes = _source_of(
            found, reference_cache, adapters, revision=revision, offline=offline, progress=progress
        )
    elif isinstance(reference, str):
        graph = open_model(reference, revision=revision, offline=offline, adapters=adapters, progress=progress)
    else:
        graph = reference
    refuse_too_little(graph, max_memory)
    own = hash_source(graph, progress=progress) if source_hashes is None else source_hashes
    is_drawn, chosen = _chosen(graph, suite, prompts, text, n_chunks, progress)
    report = compare(
        found,
        graph,
        prompts=chosen,
        budgets=budgets or UNLIMITED,
        threads=threads or os.cpu_count() or 1,
        time_limit_s=time_limit_s,
        max_memory=max_memory,
        foreign={} if other_reference else foreign(found, graph.name, own),
        progress=progress,
        kept=None if reference_cache is None else ReferenceCache(reference_cache, digest(own), progress),
    )
    name = name_suite(suite=suite, prompts=prompts, text=text, n_chunks=n_chunks, is_drawn=is_drawn)
    occasion = replace(occasion, suite=name, checkpoint_sha256=digest(own), quantised_as=graph.quantised_as)
    report = replace(report, occasion=occasion)
    if lines is not None:
        report = hold_to_lines(report, lines)
    if baseline is not None:
        if baseline.note:
            progress.note(baseline.note)
        report = hold_to_baseline(report, baseline, require=require_baseline)
    return report.with_results(result.without_folders() for result in report.results)


def keep_reference(
    graph: WeightGraph,
    *,
    reference_cache: Path,
    source_hashes: Mapping[str, str],
    suite: str = "standard",
    prompts: Path | None = None,
    text: Path | None = None,
    n_chunks: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Runs the checkpoint on what its artifacts will be compared on, and keeps that for `validate`, unless it is kept.

    Raises: as `validate` does of prompts and checkpoint.
    """
    from ..validate.prompts import encode_for
    from ..validate.reference_cache import ReferenceCache, reference_of

    _, chosen = _chosen(graph, suite, prompts, text, n_chunks, progress)
    encoded = encode_for(graph, chosen)
    kept = ReferenceCache(reference_cache, digest(source_hashes), progress)
    progress.start("checkpoint", len(encoded), "prompts")
    with TemporaryDirectory(prefix="lfm-reference-") as folder:
        reference_of(graph, encoded, kept, Path(folder), note=progress.note, on_prompt=lambda done: progress.advance(1))


def _chosen(
    graph: WeightGraph, suite: str, prompts: Path | None, text: Path | None, n_chunks: int | None, progress: Progress
) -> tuple[bool, Sequence[Prompt]]:
    """The prompts of a comparison, and whether the checkpoint draws them, for want of a tokenizer.

    Raises: UsageError for one that is not at hand and would have to.
    """
    from ..validate.sampled import sampled_prompts
    from ..validate.suites import choose_prompts

    chosen = choose_prompts(graph.tokenizer, suite=suite, prompts=prompts, text=text, n_chunks=n_chunks)
    is_drawn = graph.tokenizer is None and prompts is None
    if is_drawn and not graph.is_at_hand:
        raise UsageError(f"--reference is needed: {graph.name} has no tokenizer, and its weights draw the prompts")
    return is_drawn, sampled_prompts(graph, suite=suite, progress=progress) if is_drawn else chosen


def _source_of(
    artifacts: Sequence[Artifact],
    cache: Path | None,
    adapters: Adapting,
    *,
    revision: str | None,
    offline: bool,
    progress: Progress,
) -> tuple[WeightGraph, Mapping[str, str] | None]:
    """The checkpoint that artifacts were made from, or what is kept of it; of the latter also its files' hashes.

    Raises: as `find_source`.
    """
    from ..validate.kept_checkpoint import open_kept
    from ..validate.reference_cache import ReferenceCache

    try:
        found = find_source(artifacts, has_adapters=bool(adapters.choices), revision=revision, offline=offline)
        return open_source(found, adapters=adapters, progress=progress), None
    except UsageError:
        hashes = listed_hashes(artifacts)
        if cache is None or hashes is None or revision is not None or adapters.choices:
            raise
        kept = ReferenceCache(cache, digest(hashes), progress).find_checkpoint()
        if kept is None:
            raise
    progress.note(f"the checkpoint is not at hand: its run is taken from {cache}, and weights are not compared")
    return open_kept(kept), hashes


def _refuse_none_at_all(**numbers: float | None) -> None:
    """Raises UsageError for a number that was given and is no number of anything."""
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise UsageError(f"{name} is {number}: expected more than none")


def check_comparison(graph: WeightGraph, comparison: Mapping[str, Any]) -> int:
    """The tokens of what artifacts will be run on; 0 where the checkpoint draws them itself.

    Raises: what validation would raise for the prompts, for the checkpoint's tokenizer or template, or for the folder of
    references, before anything is written.
    """
    from ..validate.own_memory import refuse_too_little
    from ..validate.prompts import encode_for
    from ..validate.reference_cache import refuse_a_file
    from ..validate.suites import check_stored_ids, choose_prompts

    refuse_a_file(comparison.get("reference_cache"))
    refuse_too_little(graph, comparison.get("max_memory"))
    chosen = {key: comparison[key] for key in ("suite", "prompts", "text", "n_chunks") if key in comparison}
    prompts = choose_prompts(graph.tokenizer, **chosen)
    if graph.tokenizer is None and chosen.get("prompts") is None:  # then it draws ids, which any model can read
        return 0
    encoded = encode_for(graph, prompts)
    check_stored_ids(encoded, prompts, graph.tokenizer, graph.assets)
    return sum(len(prompt.token_ids) for prompt in encoded)


def quants_of(
    target: Target, quant: str | Sequence[str] | None, tune: Collection[str] = (), *, max_bytes: int | None = None
) -> list[str]:
    """The policies' own names, once each; `all` is every quant of the target, and None its default. Those whose bits are
    tuned are named so, and `auto` by the size that there is for it.

    Raises: UsageError for no name, or one that is none of them, such as one left empty.
    """
    check_tuned(tune)
    given = [target.default_quant] if quant is None else [quant] if isinstance(quant, str) else list(quant)
    if not given:
        raise UsageError(f"no quant is named in an empty list: leave it out for {target.default_quant}")
    names = [name.strip() for text in given for name in text.split(",")]
    bits = BITS in tune
    found = [target.named(named(name, max_bytes=max_bytes, bits=bits)) for name in names if bits or name != "all"]
    if "all" in names:
        return [policy.name for policy in target.policies]
    return list(dict.fromkeys(found))


def _budget(max_memory: int | None, plans: Sequence[Plan]) -> int:
    """Bytes the writers may hold at once, under a limit for the whole process."""
    if max_memory is None:
        return DEFAULT_BUDGET_BYTES
    base = max(plan.base_memory_bytes for plan in plans)
    if max_memory < base + _LEAST_BUDGET_BYTES:
        least = format_size(base + _LEAST_BUDGET_BYTES)
        raise UsageError(f"--max-memory {format_size(max_memory)} is too little: at least {least}")
    return max_memory - base
