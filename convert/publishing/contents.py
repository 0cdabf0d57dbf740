"""What one repository is to hold, file by file, and that the files are those that were validated."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ...graph.errors import Faults, UsageError
from ...graph.files import hash_files, is_file
from ...graph.progress import SILENT, Progress
from ...graph.source import assets
from ...graph.source.assets import LICENSES
from ...graph.source.tokenizer import TOKENIZER_FILE
from ..artifacts import is_own
from ..manifest import MANIFEST_FILE, Entry, Manifest
from .ecosystems import ECOSYSTEMS
from .names import CARD_FILE, PROOFS
from .repositories import refuse_incomplete

# What targets of one folder share where the files are equal: the manifest notes them for the first that wrote them.
_COMMON = (
    TOKENIZER_FILE, assets.TOKENIZER_CONFIG, assets.SPECIAL_TOKENS, assets.GENERATION_CONFIG, assets.CHAT_TEMPLATE,
)  # fmt: skip
_SHOWN = 12  # characters of a hash


@dataclass(frozen=True, kw_only=True)
class Contents:
    """One repository to be: `files` lie here, by their path there; `texts` are made for it.

    `manifest` is the one it will hold. Of contents that are `as_they_lie` every path is that of the folder, and the
    manifest the folder's own, so that a signature of the folder is one of them.
    """

    repo: str
    folder: Path
    target: str
    manifest: Manifest
    files: Mapping[str, Path]
    texts: Mapping[str, bytes]
    as_they_lie: bool

    @property
    def paths(self) -> list[str]:
        """Every file of the repository."""
        return sorted({*self.files, *self.texts})

    @property
    def model(self) -> str:
        return str(self.manifest.source.get("name", "model"))

    def size_of(self, path: str) -> int:
        """Bytes."""
        return len(self.texts[path]) if path in self.texts else self.files[path].stat().st_size

    @property
    def is_sealed(self) -> bool:
        """Whether proofs were made of the folder as it lies, so that nothing of it may be another."""
        return any(name in self.files for name in PROOFS)

    def with_texts(self, texts: Mapping[str, bytes], manifest: Manifest | None = None) -> Contents:
        """With more texts, or others in place of files."""
        kept = {path: file for path, file in self.files.items() if path not in texts}
        return replace(self, files=kept, texts={**self.texts, **texts}, manifest=manifest or self.manifest)


def compose(folder: Path, manifest: Manifest, entries: Sequence[Entry], repo: str) -> Contents:
    """What a repository holds of a folder: artifacts of one target, what they share, the licence, the card, proofs.

    Of a target whose artifacts are repositories the folder of the artifact becomes the root.
    Raises: UsageError for a part of a folder that is signed as a whole; InputError for a manifest that does not say which
    files go with its artifacts.
    """
    refuse_incomplete(folder, manifest)
    target = entries[0]["target"]
    root = PurePosixPath(entries[0]["main_file"]).parent if ECOSYSTEMS[target].is_alone else PurePosixPath()
    rooted = [_rooted(entry, root) for entry in entries]
    shared = _shared(manifest, target)
    held = replace(manifest, artifacts=tuple(rooted), shared=shared)
    as_they_lie = len(entries) == len(manifest.artifacts) and root == PurePosixPath()
    files = {file["path"]: folder / root / file["path"] for entry in rooted for file in entry["files"]}
    files |= {path: folder / path for path in shared}
    files |= {name: folder / name for name in (*LICENSES, CARD_FILE) if name not in files and is_file(folder / name)}
    proofs = {name: folder / name for name in PROOFS if is_file(folder / name)}
    if proofs and not as_they_lie:
        raise UsageError(
            f"{folder}: {', '.join(proofs)} are of the whole folder, and {repo} would hold a part of it: remove them, and "
            "sign what is published with --sign-key"
        )
    text = (folder / MANIFEST_FILE).read_bytes() if as_they_lie else held.as_noted().encode()
    return Contents(
        repo=repo,
        folder=folder,
        target=target,
        manifest=held,
        files={**files, **(proofs if as_they_lie else {})},
        texts={MANIFEST_FILE: text},
        as_they_lie=as_they_lie,
    )


def release_of(folder: Path, manifest: Manifest) -> Contents:
    """All that a folder would publish as it lies, whatever targets it is for, but for proofs."""
    files = {path: folder / path for path in manifest.owned_files()}
    files |= {name: folder / name for name in (*LICENSES, CARD_FILE) if is_file(folder / name)}
    return Contents(
        repo="",
        folder=folder,
        target="",
        manifest=manifest,
        files={**files, MANIFEST_FILE: folder / MANIFEST_FILE},
        texts={},
        as_they_lie=True,
    )


def refuse_changed(contents: Contents, *, progress: Progress = SILENT) -> dict[str, str]:
    """The sha256 of every file of a repository by path, after those that the manifest lists were found to be as listed.

    Raises: InputError naming each that is missing or another.
    """
    faults = Faults()
    found = sha256_of(contents.files, faults, folder=contents.folder, progress=progress)
    for sentence in differences(contents.manifest.owned_files(), found, skip=contents.texts):
        faults.add(sentence)
    faults.raise_if_any(f"{contents.folder}: not the files that were converted and validated")
    return found


def sha256_of(
    files: Mapping[str, Path], faults: Faults, *, folder: Path, progress: Progress = SILENT
) -> dict[str, str]:
    """The sha256 of files by their path. One that is not there, cannot be read or lies outside the folder is a fault."""
    there = {}
    for path, file in files.items():
        if not is_file(file):
            faults.add(f"'{path}' is missing")
        elif not is_own(file, folder):
            faults.add(f"'{path}' is a link to {file.resolve()}, outside the folder")
        elif not os.access(file, os.R_OK):
            faults.add(f"'{path}' cannot be read")
        else:
            there[path] = file
    hashes = hash_files(list(there.values()), jobs=os.cpu_count() or 1, progress=progress)
    return dict(zip(there, hashes, strict=True))


def differences(
    listed: Mapping[str, Mapping[str, Any]], found: Mapping[str, str], *, skip: Mapping[str, object]
) -> list[str]:
    """What a manifest says of files that are there, where it is not so. `found` are hashes by path."""
    return [
        f"'{path}' has sha256 {found[path][:_SHOWN]}…: expected {entry['sha256'][:_SHOWN]}…"
        for path, entry in sorted(listed.items())
        if path in found and path not in skip and found[path] != entry["sha256"]
    ]


def _shared(manifest: Manifest, target: str) -> dict[str, Entry]:
    """The shared files of a target, and of others what its clients read as well."""
    wanted = (*LICENSES, *(_COMMON if ECOSYSTEMS[target].reads_beside else ()))
    return {
        path: entry
        for path, entry in (manifest.shared or {}).items()
        if entry.get("target", target) == target
        or path in wanted
        or (path.startswith(f"{assets.NAMED_TEMPLATES}/") and TOKENIZER_FILE in wanted)
    }


def _rooted(entry: Entry, root: PurePosixPath) -> Entry:
    """An artifact as it is listed where `root` is the folder of its manifest."""
    if root == PurePosixPath():
        return entry

    def moved(listed: Mapping[str, Any]) -> Entry:
        return {**listed, "path": PurePosixPath(listed["path"]).relative_to(root).as_posix()}

    tensors = [
        {**tensor, **({"parts": [moved(part) for part in tensor["parts"]]} if "parts" in tensor else {})}
        for tensor in entry["tensors"]
    ]
    main_file = PurePosixPath(entry["main_file"]).relative_to(root).as_posix()
    return {**entry, "main_file": main_file, "files": [moved(file) for file in entry["files"]], "tensors": tensors}
