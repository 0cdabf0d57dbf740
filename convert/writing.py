"""From plans to published artifacts: one after the other, each whole before the next is begun."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..graph.errors import InputError, UsageError
from ..graph.files import fits_in_memory, hash_files
from ..graph.graph import WeightGraph
from ..graph.progress import Progress
from ..quantize.compiling import told_of_compiling
from ..targets.plans import Plan
from ..targets.stream import Execution
from ..targets.target import Target
from .artifacts import artifact_of
from .destination import Destination, Staging, published_alone
from .manifest import (
    MANIFEST_FILE,
    Entry,
    Manifest,
    describe_artifact,
    describe_source,
    describe_tensors,
    library_versions,
    load_manifest,
    material_hashes,
    material_sizes,
    merging,
    named_hashes,
    source_files,
    source_sizes,
    without_places,
)
from .ownership import Ownership

Hashes = Callable[[], dict[str, str]]


def already_there(where: Path) -> UsageError:
    """What to say of an artifact that nobody allowed to be replaced."""
    return UsageError(f"{where}: already exists; --overwrite replaces it, --skip-existing leaves it")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """One target's artifacts on their way into one destination, which is this run's alone.

    `skip_existing` leaves artifacts that are there as this run would write them; `resume` does so too, and goes on with
    one that was interrupted. `renews` are the main files of a release here: those that earlier runs wrote are replaced,
    now or when their turn comes, and with `afresh` even if they are as this run would write them. `source_hashes` are the
    sha256 of the source's files by path, where they are known. `written` is the folder of an artifact that was converted
    elsewhere, from which its files are moved. `tunes` gives a plan whose turn has come the codes that it
    was announced with. `published` collects the main files of the new artifacts
    as they appear.
    """

    target: Target
    graph: WeightGraph
    plans: Sequence[Plan]
    destination: Destination
    run: Execution
    progress: Progress
    overwrite: bool = False
    skip_existing: bool = False
    resume: bool = False
    renews: Collection[str] = ()
    afresh: bool = False
    source_hashes: Mapping[str, str] | None = None
    written: Path | None = None
    tunes: Callable[[Plan], AbstractContextManager[Plan]] = nullcontext
    published: list[Path] = field(default_factory=list)

    def carry_out(self) -> None:
        """Writes what is not there yet.

        Raises: UsageError, before any weight is read, if a file of somebody else's is in the way, or artifacts that
        stay are another checkpoint's; InputError if the source changes meanwhile.
        """
        names = [plan.main_file for plan in self.plans]
        if len(set(names)) < len(names):
            raise UsageError(f"{names[0]}: is the file of {len(names)} quants; {{ftype}} in --outfile tells them apart")
        manifest = load_manifest(self.destination.folder)
        with (
            told_of_compiling(self.progress.note),
            _hashed_source(self.graph, self.source_hashes, forgets=self._forgets) as hashes,
        ):
            plans = self._left_to_write(manifest, hashes)
            kept = _kept_artifacts(manifest, plans)
            _refuse_other_source(self.destination.path, manifest, self._lasting(kept), self.graph)
            stages = (self._shared(kept, plans[:n]) for n in range(1, len(plans) + 1))
            self._owner(manifest).refuse_foreign(plans, stages, overwrite=self.overwrite)
            if self.written is None:  # else they are on the disk already
                self.destination.need({file.path: file.nbytes for plan in plans for file in plan.files})
            for each in plans:
                self._publish(each, hashes)

    @property
    def _forgets(self) -> bool:
        """Whether files leave memory as soon as they are read and written: those of one artifact and of the source."""
        n_bytes = sum(path.stat().st_size for path in source_files(self.graph).values())
        return not fits_in_memory(n_bytes + max(plan.total_bytes for plan in self.plans))

    def _left_to_write(self, manifest: Manifest | None, hashes: Hashes) -> list[Plan]:
        """The plans whose artifacts are not there. Raises: UsageError for one that is there and may not be replaced."""
        left = []
        for plan in self.plans:
            path = self.destination.folder / plan.main_file
            if self.overwrite or self.afresh or not path.exists():
                left.append(plan)
                continue
            where = self.destination.path / plan.main_file
            if not (self.skip_existing or self.resume):
                raise already_there(where)
            found = self._stale(plan, manifest, hashes)
            if found is None:
                self.progress.note(f"{where}: is there already and is left as it is")
            elif plan.main_file in self.renews:
                left.append(plan)  # if it is ours, which is looked at with everything that is in the way
            else:
                raise UsageError(f"{where}: already exists, and {found}; --overwrite replaces it")
        return left

    def _stale(self, plan: Plan, manifest: Manifest | None, hashes: Hashes) -> str | None:
        """How the artifact that is there is not the one this run would write; None if it is."""
        entries = manifest.artifacts if manifest else ()
        entry = next((entry for entry in entries if entry["main_file"] == plan.main_file), None)
        if manifest is None or entry is None:
            found = f"{MANIFEST_FILE} does not know it"
        elif material_hashes(manifest.source) != hashes():
            found = f"it was made from another checkpoint ({manifest.source['name']})"
        elif (entry["target"], entry["quant"], entry["options"]) != _as_stored(self.target, plan):
            found = f"it is {entry['target']} {entry['quant']} with options {entry['options'] or 'of the target'}"
        elif entry.get("inputs", inputs := inputs_digest(plan, self.graph)) != inputs:
            found = (
                "it was made with another chat template, other settings or card beside the weights, or other importance"
            )
        elif without_places(entry["tensors"]) != without_places(describe_tensors(plan)):
            found = "its tensors are stored in other encodings, as another version chose them"
        else:
            artifact = artifact_of(self.destination.folder, entry)
            hashed = hash_files(artifact.files, jobs=self.run.jobs, progress=self.progress)
            if hashed == [file["sha256"] for file in entry["files"]]:
                return None
            found = "its files are not those that were written"
        return found

    def _owner(self, manifest: Manifest | None) -> Ownership:
        return Ownership(
            destination=self.destination,
            manifest=manifest,
            graph=self.graph,
            target=self.target.name,
            renews=bool(self.renews),
        )

    def _lasting(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of the artifacts here that are not to be replaced later either."""
        return [entry for entry in entries if entry["main_file"] not in self.renews]

    def _shared(self, kept: Sequence[Entry], plans: Sequence[Plan]) -> dict[str, bytes]:
        artifacts = [artifact_of(self.destination.folder, e) for e in kept if e["target"] == self.target.name]
        return self.target.shared_files(self.graph, [*artifacts, *plans])

    def _publish(self, plan: Plan, hashes: Hashes) -> None:
        with ExitStack() as stack:
            work = _work(self.target, plan, self.graph)
            staging = stack.enter_context(self.destination.stage(work=work, resume=self.resume))
            stack.callback(self._note_if_published, plan, staging)
            written, digests = self._write(stack.enter_context(self.tunes(plan)), staging)
            source = describe_source(self.graph, hashes())
            entry = describe_artifact(
                written, staging.folder, digests, options=self.target.options, inputs=inputs_digest(plan, self.graph)
            )
            self.graph.check_unchanged()
            with published_alone(self.destination.folder):
                old = load_manifest(self.destination.folder)
                kept = self._kept(old, plan, source)
                owner = self._owner(old)
                wanted = self._shared(kept, [plan])
                # Once more: writing may have taken hours, in which somebody put a file there.
                owner.refuse_foreign([plan], [wanted], overwrite=self.overwrite)
                shared = owner.to_write(wanted)
                for name, data in shared.items():
                    (staging.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (staging.folder / name).write_bytes(data)
                all_shared = {**((old and old.shared) or {}), **self._shared_entries(shared)}
                new = Manifest(self.destination.folder, source, tuple(kept), shared=all_shared).with_entries([entry])
                (staging.folder / MANIFEST_FILE).write_text(new.dumps(), encoding="utf-8")
                staging.publish(remove=owner.obsolete(new))

    def _note_if_published(self, plan: Plan, staging: Staging) -> None:
        if staging.is_committed:
            self.published.append(self.destination.path / plan.main_file)

    def _kept(self, old: Manifest | None, plan: Plan, source: Mapping[str, Any]) -> list[Entry]:
        """The artifacts that stay beside a new one.

        Those of another checkpoint that this run has yet to replace lose their place in the manifest now.
        Raises: UsageError if it replaces only some of them.
        """
        if old is None or material_hashes(old.source) == material_hashes(source):
            return _kept_artifacts(old, [plan])
        if self._lasting(_kept_artifacts(old, self.plans)):
            raise _other_source(self.destination.path, old)
        return []

    def _shared_entries(self, shared: Mapping[str, bytes]) -> dict[str, Entry]:
        return {
            name: {
                "path": name,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "target": self.target.name,
            }
            for name, data in shared.items()
        }

    def _write(self, plan: Plan, staging: Staging) -> tuple[Plan, dict[str, str]]:
        """The plan with what only the weights could tell, and the sha256 of its files."""
        if self.written is not None:
            return _moved(plan, self.written, staging)
        self.progress.start(f"{self.target.name} {plan.quant}", sum(t.view.nbytes for t in plan.tensors), "bytes")
        notes: list[str] = []
        run = replace(
            self.run,
            note=notes.append,
            journal=staging.journal,
            progress=self.progress.advance,
            forgets=self._forgets,
            digests={},
        )
        self.target.write(plan, self.graph, staging.folder, run)
        for note in notes:
            self.progress.note(f"{plan.quant}: {note}")
        paths = [staging.folder / file.path for file in plan.files if file.path not in run.digests]
        with run.profile.stage("hash again"):
            rest = hash_files(paths, jobs=run.jobs)
        found = {path.relative_to(staging.folder).as_posix(): digest for path, digest in zip(paths, rest, strict=True)}
        return replace(plan, notes=(*plan.notes, *notes)), {**run.digests, **found}


def _moved(plan: Plan, written: Path, staging: Staging) -> tuple[Plan, dict[str, str]]:
    """As the manifest beside files that were written elsewhere has it. Raises: InputError if it is of something else."""
    manifest = load_manifest(written)
    entry = next(
        (each for each in (manifest.artifacts if manifest else ()) if each["main_file"] == plan.main_file), None
    )
    if entry is None or [file["path"] for file in entry["files"]] != [file.path for file in plan.files]:
        raise InputError(f"{written}: does not hold {plan.target} {plan.quant} as it was planned")
    for file in plan.files:
        target = staging.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written / file.path, target)
    return replace(plan, notes=tuple(entry["notes"])), {file["path"]: file["sha256"] for file in entry["files"]}


@contextmanager
def _hashed_source(graph: WeightGraph, found: Mapping[str, str] | None, *, forgets: bool) -> Iterator[Hashes]:
    """Gives what `hash_source` does: of weights it is taken from what is read of them meanwhile, unless it was `found`
    before.
    """
    if found is not None:
        listed = dict(found)
        yield lambda: listed
        return
    with ExitStack() as stack:
        weights = graph.checkpoint.files if graph.checkpoint else ()
        running = {file.path: stack.enter_context(file.hashed(forgets=forgets)) for file in weights}
        paths = list(source_files(graph).values())
        others = [path for path in paths if path not in running]
        known = dict(zip(others, hash_files(others, jobs=1), strict=True))
        yield lambda: named_hashes(graph, [known.get(path) or running[path].result() for path in paths])


def _kept_artifacts(manifest: Manifest | None, plans: Sequence[Plan]) -> list[Entry]:
    """The entries that are not replaced."""
    new = {plan.main_file for plan in plans}
    return [entry for entry in manifest.artifacts if entry["main_file"] not in new] if manifest else []


def _refuse_other_source(path: Path, manifest: Manifest | None, kept: Sequence[Entry], graph: WeightGraph) -> None:
    """What can be seen without reading weights: other files, or other sizes. Raises: UsageError."""
    if manifest is None or not kept:
        return
    if material_sizes(manifest.source) != source_sizes(graph):
        raise _other_source(path, manifest)


def _other_source(path: Path, manifest: Manifest) -> UsageError:
    return UsageError(
        f"{path}: holds artifacts of another checkpoint ({manifest.source['name']}); choose another --out"
    )


def _as_stored(target: Target, plan: Plan) -> tuple[str, str, object]:
    """Target, quant and options as a manifest gives them back."""
    return plan.target, plan.quant, json.loads(json.dumps(target.options))


def inputs_digest(plan: Plan, graph: WeightGraph) -> str:
    """sha256 of what decides an artifact beside its options and the source's hashed files."""
    digest = hashlib.sha256()
    for each in fields(graph.assets):
        value = getattr(graph.assets, each.name)
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
    _add_fitted(digest, plan)
    return digest.hexdigest()


def _add_fitted(digest: hashlib._Hash, plan: Plan) -> None:
    """What of a plan was fitted to a text."""
    if plan.tuned:
        digest.update(json.dumps(plan.tuned, sort_keys=True).encode())
    for tensor in plan.tensors:
        if tensor.importance is not None:
            digest.update(repr((tensor.name, tensor.importance.shape)).encode())
            digest.update(tensor.importance.tobytes())


def _work(target: Target, plan: Plan, graph: WeightGraph) -> str:
    """A name of the bytes to be written: of two plans with the same name every part of one is a part of the other."""
    digest = hashlib.sha256()
    for fact in (
        library_versions(),
        [(str(stamp.path), stamp.size, stamp.mtime_ns, stamp.inode) for stamp in graph.stamps],
        merging(graph),
        _as_stored(target, plan),
        [(file.path, file.nbytes) for file in plan.files],
    ):
        digest.update(repr(fact).encode())
    for tensor in plan.tensors:
        digest.update(repr((tensor.name, tensor.encoding.name, tensor.shape, tensor.placements)).encode())
    _add_fitted(digest, plan)
    return digest.hexdigest()
