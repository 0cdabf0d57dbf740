"""The drive shaft: checkpoint → graph → plan → files → manifest → validation. Also the Python API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..targets.target import Artifact, Target, get_target
from .errors import Faults, InputError, UsageError
from .files import hash_files, recover, staged
from .manifest import MANIFEST_FILE, Entry, Manifest, describe_artifact, describe_source, load_manifest
from .model.graph import WeightGraph
from .model.lfm2 import open_graph
from .plans import DEFAULT_BUDGET_BYTES, Plan
from .progress import SILENT, Progress
from .source import find_model
from .stream import DEFAULT_RANGE_BYTES, Execution
from .units import format_size

if TYPE_CHECKING:
    from ..validate.budgets import Budgets
    from ..validate.results import Report

_LEAST_BUDGET_BYTES = 32 << 20


@dataclass(frozen=True)
class Converted:
    """Result of `convert`: the folder, its new artifacts, and how they validated (None if not asked)."""

    folder: Path
    plans: tuple[Plan, ...]
    artifacts: tuple[Artifact, ...]
    report: Report | None = field(default=None, repr=False)


def open_model(
    model: str | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    weights: bool = True,
    progress: Progress = SILENT,
) -> WeightGraph:
    """The weight graph of a folder, a hub id, or the default model; see `find_model`, `open_graph`."""
    source = find_model(model, revision=revision, offline=offline)
    if source.note:
        progress.note(source.note)
    graph = open_graph(source.folder, name=source.name, weights=weights)
    for note in graph.notes:
        progress.note(note)
    return graph


def plan(
    model: str | WeightGraph | None,
    *,
    target: str,
    quant: str | Sequence[str],
    options: Mapping[str, Any] | None = None,
) -> tuple[Plan, ...]:
    """What `convert` would write, one plan a quant. Works from a folder that holds only config.json.

    Raises: UsageError for an unknown target or quant, or a model the format cannot express.
    """
    graph = model if isinstance(model, WeightGraph) else open_model(model, weights=False)
    chosen = get_target(target).with_options(options or {})
    return tuple(chosen.plan(graph, name) for name in _quants(chosen, quant))


def convert(
    model: str | WeightGraph | None = None,
    *,
    target: str,
    quant: str | Sequence[str] | None = None,
    out: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    max_memory: int | None = None,
    validate_after: bool = True,
    budgets: Budgets | None = None,
    range_bytes: int = DEFAULT_RANGE_BYTES,
    progress: Progress = SILENT,
) -> Converted:
    """Writes the artifacts of one target, then runs each and compares it with the checkpoint.

    `max_memory` and `range_bytes` are bytes; `jobs` defaults to the number of cores; `options` are the target's own,
    such as `{"refine": True}`. A plan that is over one of the `budgets` is refused before any weight is read.
    Raises: any LfmConvertError; whatever happens, existing artifacts stay whole.
    """
    jobs = jobs or os.cpu_count() or 1
    chosen = get_target(target).with_options(options or {})
    quants = _quants(chosen, quant or chosen.default_quant)
    graph = model if isinstance(model, WeightGraph) else open_model(model, progress=progress)
    folder = Path(out) if out is not None else Path(f"{graph.name}-{chosen.name.upper()}")
    recover(folder)
    plans = tuple(chosen.plan(graph, name) for name in quants)
    budget = _budget(max_memory, plans)
    for each in plans:
        if strict:
            each.refuse_fallbacks()
        for fallback in each.fallbacks:
            progress.note(f"{each.quant}: '{fallback.tensor}' stored as {fallback.used}: {fallback.reason}")
    if budgets is not None:
        budgets.refuse(graph.config, plans)
    base = _base_manifest(folder, graph, plans, overwrite=overwrite, jobs=jobs, progress=progress)
    run = Execution(jobs=jobs, budget_bytes=budget, range_bytes=range_bytes, progress=progress.advance)
    _write(chosen, graph, plans, folder, base, run, progress)
    artifacts = tuple(find_artifacts(folder, only={p.main_file for p in plans}))
    report = None
    if validate_after:
        report = validate(artifacts, reference=graph, budgets=budgets, progress=progress)
        record(report)
    return Converted(folder, plans, artifacts, report)


def validate(
    artifacts: Sequence[Artifact | Path | str],
    *,
    reference: str | WeightGraph | None,
    suite: str = "standard",
    prompts: Path | None = None,
    text: Path | None = None,
    n_chunks: int | None = None,
    budgets: Budgets | None = None,
    threads: int | None = None,
    time_limit_s: float = 1800,
    progress: Progress = SILENT,
) -> Report:
    """Runs artifacts in their runtimes and compares them with the checkpoint.

    A path may be an artifact's file, or a folder: then all artifacts of its manifest are meant. `suite`, `prompts`
    and `text` choose what they are run on, see `choose_prompts`.
    Raises: InputError for a file that is not what its manifest says.
    """
    from ..validate.budgets import UNLIMITED
    from ..validate.parity import validate as compare
    from ..validate.suites import choose_prompts

    graph = reference if isinstance(reference, WeightGraph) else open_model(reference, progress=progress)
    found: list[Artifact] = []
    for each in artifacts:
        found += [each] if isinstance(each, Artifact) else _verified(find_artifacts(Path(each)), progress)
    return compare(
        found,
        graph,
        prompts=choose_prompts(graph.tokenizer, suite=suite, prompts=prompts, text=text, n_chunks=n_chunks),
        budgets=budgets or UNLIMITED,
        threads=threads or os.cpu_count() or 1,
        time_limit_s=time_limit_s,
        progress=progress,
    )


def record(report: Report) -> None:
    """Writes each artifact's numbers and verdict into the manifest beside it."""
    for result in report.results:
        manifest = load_manifest(result.artifact.folder)
        if manifest is None:
            continue
        name = result.artifact.path.relative_to(result.artifact.folder).as_posix()
        found = {key: value for key, value in result.to_json().items() if key != "path"}
        entries = [{**e, "validation": found} for e in manifest.artifacts if e["main_file"] == name]
        manifest.with_entries(entries).save()


def find_artifacts(path: Path, *, only: set[str] | None = None) -> list[Artifact]:
    """The artifacts that lie in a folder, or the one whose main file `path` is; `only` names main files.

    The manifest is that of the folder or of the nearest folder above it.
    Raises: InputError if there is no manifest, or a file is missing or has another size than recorded.
    """
    recover(path)
    above = [path, *path.absolute().parents]
    folder = next((p for p in above if (p / MANIFEST_FILE).is_file()), path)
    recover(folder)
    if not path.exists():
        raise InputError(f"{path}: not found")
    manifest = load_manifest(folder)
    if manifest is None:
        raise InputError(f"{path}: no {MANIFEST_FILE} here or above; lfm-convert writes one beside every artifact")
    entries = [
        entry
        for entry in manifest.artifacts
        if (folder / entry["main_file"]).absolute().is_relative_to(path.absolute())
        and (only is None or entry["main_file"] in only)
    ]
    if not entries:
        raise InputError(f"{path}: not an artifact of {folder / MANIFEST_FILE}")
    return [_artifact(folder, entry) for entry in entries]


def _artifact(folder: Path, entry: Entry) -> Artifact:
    faults = Faults()
    for file in entry["files"]:
        path = folder / file["path"]
        size = path.stat().st_size if path.is_file() else None
        if not path.resolve().is_relative_to(folder.resolve()):
            faults.add(f"'{file['path']}' is a link to {path.resolve()}, outside the folder")
        elif size is None:
            faults.add(f"'{file['path']}' is missing")
        elif size != file["bytes"]:
            faults.add(f"'{file['path']}' has {size} bytes: expected {file['bytes']}")
    faults.raise_if_any(str(folder))
    return Artifact(
        path=folder / entry["main_file"],
        folder=folder,
        target=entry["target"],
        quant=entry["quant"],
        class_name=entry["class"],
        files=tuple(folder / file["path"] for file in entry["files"]),
        entry=entry,
    )


def _verified(artifacts: list[Artifact], progress: Progress) -> list[Artifact]:
    """The artifacts, after their files were found to be, by hash, those the manifest was written for, and no others."""
    faults = Faults()
    for artifact in artifacts:
        hashes = hash_files(artifact.files, jobs=os.cpu_count() or 1, progress=progress)
        for file, entry, found in zip(artifact.files, artifact.entry["files"], hashes, strict=True):
            if found != entry["sha256"]:
                faults.add(f"'{file}' has sha256 {found[:12]}…: expected {entry['sha256'][:12]}…")
    faults.raise_if_any("not the files that were converted")
    for artifact in artifacts:
        get_target(artifact.target).check_files(artifact)
    return artifacts


def _quants(target: Target, quant: str | Sequence[str]) -> list[str]:
    """The policies' own names, once each; `all` is every quant of the target."""
    if quant == "all":
        return [policy.name for policy in target.policies]
    names = quant.split(",") if isinstance(quant, str) else list(quant)
    return list(dict.fromkeys(target.policy(name.strip()).name for name in names))


def _budget(max_memory: int | None, plans: Sequence[Plan]) -> int:
    """Bytes the writers may hold at once, under a limit for the whole process."""
    if max_memory is None:
        return DEFAULT_BUDGET_BYTES
    base = max(plan.base_memory_bytes for plan in plans)
    if max_memory < base + _LEAST_BUDGET_BYTES:
        least = format_size(base + _LEAST_BUDGET_BYTES)
        raise UsageError(f"--max-memory {format_size(max_memory)} is too little: at least {least}")
    return max_memory - base


def _base_manifest(
    folder: Path, graph: WeightGraph, plans: Sequence[Plan], *, overwrite: bool, jobs: int, progress: Progress
) -> Manifest:
    """The folder's manifest as it will be kept, with this checkpoint as its source.

    Raises: UsageError if an artifact is there already, or those that stay are another checkpoint's.
    """
    new = {plan.main_file for plan in plans}
    taken = sorted(name for name in new if (folder / name).exists())
    if taken and not overwrite:
        raise UsageError(f"{folder / taken[0]}: already exists; --overwrite replaces it")
    old = load_manifest(folder)
    source = describe_source(graph, jobs=jobs, progress=progress)
    kept = [e for e in old.artifacts if e["main_file"] not in new] if old else []
    if old and kept and old.source["files"] != source["files"]:
        raise UsageError(
            f"{folder}: holds artifacts of another checkpoint ({old.source['name']}); choose another --out"
        )
    return Manifest(folder, source, tuple(kept))


def _write(
    target: Target,
    graph: WeightGraph,
    plans: Sequence[Plan],
    folder: Path,
    base: Manifest,
    run: Execution,
    progress: Progress,
) -> None:
    with staged(folder, need_bytes=sum(plan.total_bytes for plan in plans)) as staging:
        written = []
        for each in plans:
            progress.start(f"{target.name} {each.quant}", sum(t.view.nbytes for t in each.tensors), "bytes")
            notes: list[str] = []
            target.write(each, graph, staging.folder, replace(run, note=notes.append))
            for note in notes:
                progress.note(f"{each.quant}: {note}")
            written.append(replace(each, notes=(*each.notes, *notes)))
        kept = [_artifact(folder, entry) for entry in base.artifacts if entry["target"] == target.name]
        for name, data in target.shared_files(graph, [*kept, *plans]).items():
            (staging.folder / name).write_bytes(data)
        if graph.checkpoint is not None:
            graph.checkpoint.check_unchanged()
        entries = [
            describe_artifact(each, staging.folder, options=target.options, jobs=run.jobs, progress=progress)
            for each in written
        ]
        manifest = base.with_entries(entries)
        (staging.folder / MANIFEST_FILE).write_text(manifest.dumps(), encoding="utf-8")
        staging.publish(remove=_obsolete(folder, entries))


def _obsolete(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Files of replaced artifacts that their successors no longer have, such as a surplus data chunk."""
    old = load_manifest(folder)
    replaced = {entry["main_file"] for entry in entries}
    before = [e for e in old.artifacts if e["main_file"] in replaced] if old else []
    now = {file["path"] for entry in entries for file in entry["files"]}
    return [file["path"] for entry in before for file in entry["files"] if file["path"] not in now]
