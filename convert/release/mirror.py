"""A release whose files lie in a store: what is small is mirrored in a folder here, artifacts never are.

A reader who goes by the manifest finds an artifact as it was, or the whole new one. Its files arrive beside the output, are
read back there, and are moved in before the manifest that lists them; one that replaces others leaves the manifest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...graph.errors import InputError, UsageError
from ...graph.source.urls import Remote, stamp_of, told
from ...targets.target import Artifact
from ..artifacts import described
from ..manifest import MANIFEST_FILE, Entry, Manifest, load_manifest, material_hashes
from .output import Output
from .parts import Made, hash_remote, move
from .state import State
from .steps import Convert

_SHOWN = 8


class Mirror(Output):
    """The output that a URL names. `folder` is empty at first, and this run's alone.

    Raises: NetworkError wherever the store cannot be reached or refuses.
    """

    is_here = False

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote, self.folder, self.shown = remote, folder, remote.url
        self._sent: dict[str, str] = {}  # sha256 of small files as the store has them, by path

    @property
    def store(self) -> Remote:
        return self._remote

    def bring(self, *paths: Path) -> None:
        for path in paths:
            place = self._place(path)
            with told(place.url):
                try:
                    data = place.fs.cat_file(place.path)
                except FileNotFoundError:
                    continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._sent[self._name(path)] = _sha256(data)

    def send(self) -> None:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.endswith((".lock", ".lfm-partial")):
                self._send(path)

    def _send(self, path: Path) -> None:
        data = path.read_bytes()
        if self._sent.get(self._name(path)) != _sha256(data):
            place = self._place(path)
            with told(place.url):
                place.fs.pipe_file(place.path, data)
            self._sent[self._name(path)] = _sha256(data)

    def holds(self, files: Mapping[Path, str], state: State) -> bool:
        return all(self._sha256_of(self._place(path), state) == sha256 for path, sha256 in files.items())

    def _sha256_of(self, place: Remote, state: State) -> str | None:
        """sha256 of a file of the store, read if it is not known of it as it is; None of one that is not there."""
        info = self._info(place)
        if info is None:
            return None
        found = state.known(place.url, stamp_of(info))
        if found is None:
            found = hash_remote(place)
            state.note(place.url, found, stamp_of(info))
        return found

    def _know(self, place: Remote, sha256: str, state: State) -> None:
        """Notes what a file of the store is that was put there just now."""
        state.note(place.url, sha256, stamp_of(self._info(place) or {}))

    def _info(self, place: Remote) -> dict[str, Any] | None:
        with told(place.url):
            try:
                found: dict[str, Any] = place.fs.info(place.path)
            except FileNotFoundError:
                return None
        return found if found.get("type") == "file" else None

    def artifact(self, folder: Path, main_file: str) -> Artifact:
        manifest = load_manifest(folder)
        entries = manifest.artifacts if manifest else ()
        entry = next((entry for entry in entries if entry["main_file"] == main_file), None)
        if entry is None:
            raise InputError(f"{self._place(folder).url}: lists no {main_file}")
        for file in entry["files"]:
            info = self._info(self._place(folder / file["path"]))
            if info is None or info["size"] != file["bytes"]:
                raise InputError(f"{self._place(folder).url}: '{file['path']}' is missing or has another size")
        return described(folder, entry)

    def adopt(self, step: Convert, made: Made) -> None:
        folder = step.artifact.folder
        arrived = made.place / self._name(folder)
        new = replace(_manifest_of(arrived), folder=folder)
        (entry,) = new.artifacts
        self.bring(folder / MANIFEST_FILE)  # as it is now: others may have written there
        old = load_manifest(folder)
        kept = _kept(old, new, entry, step, where=self._place(folder).url)
        shared = self._shared(step, kept)
        folder.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign(step, old, entry, shared)
        self._unlist(folder, old, entry)
        for file in entry["files"]:
            target = self._place(folder / file["path"])
            if self._sha256_of(target, step.site.state) != file["sha256"]:
                move(arrived / file["path"], target)
            self._know(target, file["sha256"], step.site.state)
        for name, data in shared.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            self._send(folder / name)
            self._know(self._place(folder / name), _sha256(data), step.site.state)
        own = {name: _listed(name, data, entry["target"]) for name, data in shared.items()}
        whole = replace(new, artifacts=tuple(kept), shared={**((old and old.shared) or {}), **own})
        whole = whole.with_entries([entry])
        (folder / MANIFEST_FILE).write_text(whole.dumps(), encoding="utf-8")
        self._send(folder / MANIFEST_FILE)
        self._drop(folder, old, whole, step.site.state)

    def _shared(self, step: Convert, kept: Sequence[Entry]) -> dict[str, bytes]:
        """What all artifacts of the target in the folder share, this one with them, where it is not there already."""
        artifact = step.artifact
        beside = [described(artifact.folder, entry) for entry in kept if entry["target"] == artifact.plan.target]
        files = artifact.wanted.target.shared_files(artifact.graph, [*beside, artifact.plan])
        there = {name: self._sha256_of(self._place(artifact.folder / name), step.site.state) for name in files}
        return {name: data for name, data in files.items() if there[name] != _sha256(data)}

    def _refuse_foreign(self, step: Convert, old: Manifest | None, entry: Entry, shared: Mapping[str, bytes]) -> None:
        """Raises UsageError for files that are in the way and that no conversion wrote, or that were changed since."""
        if step.site.overwrite:
            return
        folder, ours = step.artifact.folder, old.owned_files() if old else {}
        wanted = {file["path"]: file["sha256"] for file in entry["files"]}
        wanted |= {name: _sha256(data) for name, data in shared.items()}
        foreign = []
        for name, sha256 in wanted.items():
            found = self._sha256_of(self._place(folder / name), step.site.state)
            if found not in (None, sha256, ours.get(name, {}).get("sha256")):
                foreign.append(name)
        if foreign:
            more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
            raise UsageError(
                f"{self._place(folder).url}: {', '.join(sorted(foreign)[:_SHOWN])}{more} there, not as lfm-convert wrote "
                "it, would be replaced; choose another --out, or --overwrite replaces it"
            )

    def _unlist(self, folder: Path, old: Manifest | None, entry: Entry) -> None:
        """Before files are replaced: a manifest without the artifacts that they belong to."""
        if old is None:
            return
        new = {file["path"]: file["sha256"] for file in entry["files"]}
        left = [
            each
            for each in old.artifacts
            if all(new.get(file["path"], file["sha256"]) == file["sha256"] for file in each["files"])
        ]
        if len(left) < len(old.artifacts):
            (folder / MANIFEST_FILE).write_text(replace(old, artifacts=tuple(left)).dumps(), encoding="utf-8")
            self._send(folder / MANIFEST_FILE)

    def _drop(self, folder: Path, old: Manifest | None, new: Manifest, state: State) -> None:
        """Removes files of replaced artifacts that their successors no longer have."""
        gone = set(old.owned_files() if old else ()) - set(new.owned_files())
        for name in sorted(gone):
            place = self._place(folder / name)
            if old is not None and self._sha256_of(place, state) == old.owned_files()[name]["sha256"]:
                with told(place.url):
                    place.fs.rm_file(place.path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _place(self, path: Path) -> Remote:
        return self._remote / self._name(path)


def _kept(old: Manifest | None, new: Manifest, entry: Entry, step: Convert, *, where: str) -> list[Entry]:
    """The artifacts that stay beside a new one: of another checkpoint none, which this release has yet to replace.

    Raises: UsageError for one that it does not replace.
    """
    if old is None:
        return []
    kept = [each for each in old.artifacts if each["main_file"] != entry["main_file"]]
    if material_hashes(old.source) == material_hashes(new.source):
        return kept
    renewed = step.site.preparation.beside(step.artifact)
    if any(each["main_file"] not in renewed for each in kept):
        raise UsageError(f"{where}: holds artifacts of another checkpoint ({old.source['name']}); choose another --out")
    return []


def _manifest_of(arrived: Remote) -> Manifest:
    """The manifest that came with an artifact."""
    with TemporaryDirectory() as name, told(arrived.url):
        (Path(name) / MANIFEST_FILE).write_bytes(arrived.fs.cat_file(f"{arrived.path}/{MANIFEST_FILE}"))
        found = load_manifest(Path(name))
    if found is None or len(found.artifacts) != 1:
        raise InputError(f"{arrived.url}: expected a manifest of one artifact")
    return found


def _listed(name: str, data: bytes, target: str) -> Entry:
    return {"path": name, "bytes": len(data), "sha256": _sha256(data), "target": target}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
