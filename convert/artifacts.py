"""Artifacts on disk: found by their manifest, held to it, and their verdicts noted in it; without one, by their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..graph.errors import DiskError, Faults, InputError
from ..graph.files import hash_files, is_file
from ..graph.progress import SILENT, Progress
from ..targets.target import Artifact, get_target, target_names
from .destination import published_alone, settle
from .manifest import MANIFEST_FILE, Entry, load_manifest

if TYPE_CHECKING:
    from ..validate.results import ArtifactResult, Report


def record(report: Report, *, progress: Progress = SILENT) -> None:
    """Writes each artifact's numbers and verdict into the manifest beside it; where it cannot, a note says so.

    That a reference was the wrong one says nothing of the artifact. One without a manifest is given none.
    """
    for result in report.results:
        if result.is_foreign or result.artifact.is_recognised:
            continue
        folder = result.artifact.folder
        try:
            with published_alone(folder):
                _record(result)
        except (OSError, DiskError) as error:
            progress.note(f"{result.artifact.label}: the verdict is not recorded in {folder / MANIFEST_FILE}: {error}")


def _record(result: ArtifactResult) -> None:
    manifest = load_manifest(result.artifact.folder)
    if manifest is None:
        return
    name = result.artifact.path.relative_to(result.artifact.folder).as_posix()
    entries = [
        {**e, "validation": result.without_folders().findings()} for e in manifest.artifacts if e["main_file"] == name
    ]
    manifest.with_entries(entries).save()


def find_artifacts(path: Path, *, only: set[str] | None = None) -> list[Artifact]:
    """The artifacts that lie in a folder, or the one whose main file `path` is; `only` names main files.

    Where no manifest lists them, they are what the targets recognise there: anybody's.
    Raises: InputError if there are none, or a file is missing or has another size than recorded.
    """
    settle(path if path.is_dir() else path.parent)
    if not path.exists():
        raise InputError(f"{path}: not found")
    found = listed_artifacts(path, only=only) or recognised_artifacts(path)
    if not found:
        raise InputError(
            f"{path}: no {MANIFEST_FILE} here or above lists it, and it is no GGUF, MLX folder, ONNX graph, .pte, "
            ".mlpackage or folder of compressed-tensors"
        )
    return found


def listed_artifacts(path: Path, *, only: set[str] | None = None) -> list[Artifact]:
    """Those that a manifest lists at or below a path; none if there is no such manifest.

    The manifest is that of the folder or of the nearest folder above it that lists something there: one that happens
    to lie above says nothing of files it does not know.
    Raises: InputError for a file that is missing or has another size than recorded.
    """
    for folder in (path, *path.absolute().parents):
        if not (folder / MANIFEST_FILE).is_file():
            continue
        settle(folder)
        entries = [e for e in _listed(folder, path) if only is None or e["main_file"] in only]
        if entries:
            return [artifact_of(folder, entry) for entry in entries]
    return []


def recognised_artifacts(path: Path) -> list[Artifact]:
    """What the targets recognise at a path, whoever wrote it. Raises: InputError, see `Target.recognise`."""
    return [artifact for name in target_names() for artifact in get_target(name).recognise(path)]


def _listed(folder: Path, path: Path) -> list[Entry]:
    """What the manifest of a folder lists at or below a path. One that cannot be read is nobody's, but for its own folder.

    Raises: InputError for a malformed manifest of the path itself, or of the folder it lies in.
    """
    try:
        manifest = load_manifest(folder)
    except InputError:
        if folder.absolute() in (path.absolute(), path.absolute().parent):
            raise
        return []
    entries = manifest.artifacts if manifest else ()
    return [e for e in entries if (folder / e["main_file"]).absolute().is_relative_to(path.absolute())]


def artifact_of(folder: Path, entry: Entry) -> Artifact:
    """The artifact of a manifest's entry. Raises: InputError if a file is missing or has another size."""
    faults = Faults()
    for file in entry["files"]:
        path = folder / file["path"]
        size = path.stat().st_size if is_file(path) else None
        if not is_own(path, folder):
            faults.add(f"'{file['path']}' is a link to {path.resolve()}, outside the folder")
        elif size is None:
            faults.add(f"'{file['path']}' is missing")
        elif size != file["bytes"]:
            faults.add(f"'{file['path']}' has {size} bytes: expected {file['bytes']}")
    faults.raise_if_any(str(folder))
    return described(folder, entry)


def described(folder: Path, entry: Entry) -> Artifact:
    """The artifact of a manifest's entry, whether its files are there or not."""
    return Artifact(
        path=folder / entry["main_file"],
        folder=folder,
        target=entry["target"],
        quant=entry["quant"],
        class_name=entry["class"],
        files=tuple(folder / file["path"] for file in entry["files"]),
        entry=entry,
    )


def is_own(path: Path, folder: Path) -> bool:
    """Whether a file is the folder's: in it, or linked from it into the store of its hub cache.

    Such a link is trusted no further than a file: what it leads to must have the recorded hash before it is run.
    """
    found, folder = path.resolve(), folder.resolve()
    if found.is_relative_to(folder):
        return True
    # hub cache: models--org--name/snapshots/<revision>[/sub-folder] beside models--org--name/blobs
    caches = [above.parent for above in (folder, *folder.parents) if above.name == "snapshots"]
    return any(found.is_relative_to(cache / "blobs") for cache in caches)


def verified(artifacts: list[Artifact], progress: Progress) -> list[Artifact]:
    """The artifacts, after their files were found to be, by hash, those the manifest was written for, and no others.

    Of those without a manifest no hash is known: that they read no file beyond their own is all that can be held.
    """
    faults = Faults()
    for artifact in (each for each in artifacts if not each.is_recognised):
        hashes = hash_files(artifact.files, jobs=os.cpu_count() or 1, progress=progress)
        for file, entry, found in zip(artifact.files, artifact.entry["files"], hashes, strict=True):
            if found != entry["sha256"]:
                faults.add(f"'{file}' has sha256 {found[:12]}…: expected {entry['sha256'][:12]}…")
    faults.raise_if_any("not the files that were converted")
    for artifact in artifacts:
        get_target(artifact.target).check_files(artifact)
    return artifacts
