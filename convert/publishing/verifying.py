"""Whether a folder is the release that it says it is: its manifest, its statement and its signature, held to its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.errors import Faults, InputError
from ...graph.files import is_file
from ...graph.progress import SILENT, Progress
from ...graph.source.assets import LICENSES
from ..manifest import MANIFEST_FILE, Manifest, material_hashes
from .contents import differences, release_of, sha256_of
from .names import CARD_FILE, HUB_FILES, PROOFS, SBOM_FILE, SIGNATURE_FILE, STATEMENT_FILE
from .repositories import open_folder
from .signature import refuse_unsigned, signed_files
from .statement import read_subjects

_SHOWN = 12  # characters of a hash
_LISTED = 5
_NONE, _UNCHECKED, VALID, _INVALID = "none", "not checked", "valid", "invalid"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What is wrong with a folder, a sentence each, and what there is to know where nothing is.

    `n_files` are those whose hash was compared. `signature` is `none`, `not checked` without a key, or `valid` or `invalid`
    for these files and the key that was given.
    """

    folder: Path
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    n_files: int
    has_statement: bool
    signature: str

    def raise_if_any(self) -> None:
        """Raises InputError with every fault."""
        faults = Faults()
        for sentence in self.faults:
            faults.add(sentence)
        faults.raise_if_any(str(self.folder))

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": not self.faults,
            "faults": list(self.faults),
            "notes": list(self.notes),
            "files": self.n_files,
            "statement": self.has_statement,
            "signature": self.signature,
        }


def verify(folder: Path, *, key: Path | None = None, progress: Progress = SILENT) -> Verified:
    """Compares every file of a folder with its manifest, and with its statement and signature where it has them.

    With a public key the signature must be there and be its. Raises: InputError for a folder without a manifest, or a key
    that is none; BackendError for a key without the extra `release`.
    """
    manifest = open_folder(folder)
    release = release_of(folder, manifest)
    faults: list[str] = []
    collected = Faults()
    proofs = {name: folder / name for name in PROOFS if is_file(folder / name)}
    found = sha256_of({**release.files, **proofs}, collected, folder=folder, progress=progress)
    faults += collected.sentences
    faults += differences(manifest.owned_files(), found, skip={})
    if STATEMENT_FILE in proofs:
        faults += _hold_to_statement(folder, manifest, found)
    signature, about_it = _check_signature(folder, manifest, found, key)
    return Verified(
        folder=folder,
        faults=tuple(dict.fromkeys([*faults, *about_it])),
        notes=tuple(_notes(folder, found, has_key=key is not None)),
        n_files=len(found),
        has_statement=STATEMENT_FILE in proofs,
        signature=signature,
    )


def _check_signature(
    folder: Path, manifest: Manifest, found: Mapping[str, str], key: Path | None
) -> tuple[str, list[str]]:
    """What `Verified.signature` says, and what is wrong with it."""
    if SIGNATURE_FILE not in found:
        asked = [f"'{SIGNATURE_FILE}' is missing, and --key asks for a signature"] if key is not None else []
        return _NONE, asked
    faults = list(_hold_to_signature(folder, manifest, found))
    if key is None:
        return _UNCHECKED, faults
    try:
        refuse_unsigned(folder, key)
    except InputError as error:
        faults.append(str(error))
    return _INVALID if faults else VALID, faults


def _hold_to_statement(folder: Path, manifest: Manifest, found: Mapping[str, str]) -> Iterator[str]:
    """What a statement says otherwise than the files and the manifest."""
    try:
        subjects, materials = read_subjects(folder / STATEMENT_FILE)
    except InputError as error:
        yield str(error)
        return
    about = {path: sha256 for path, sha256 in found.items() if path not in (STATEMENT_FILE, SIGNATURE_FILE)}
    yield from _compared(subjects, about, STATEMENT_FILE)
    if materials != material_hashes(manifest.source):
        yield f"'{MANIFEST_FILE}' names other files of the checkpoint than '{STATEMENT_FILE}'"


def _hold_to_signature(folder: Path, manifest: Manifest, found: Mapping[str, str]) -> Iterator[str]:
    """What was signed otherwise than the files are, or is no part of the release."""
    try:
        signed = signed_files(folder / SIGNATURE_FILE)
    except InputError as error:
        yield str(error)
        return
    yield from _compared(signed, {path: sha for path, sha in found.items() if path != SIGNATURE_FILE}, SIGNATURE_FILE)
    known = {*manifest.owned_files(), *LICENSES, CARD_FILE, MANIFEST_FILE, SBOM_FILE, STATEMENT_FILE}
    for path in sorted(set(signed) - known):
        yield f"'{path}' is signed, and '{MANIFEST_FILE}' does not know it"


def _compared(told: Mapping[str, str], found: Mapping[str, str], by: str) -> Iterator[str]:
    """Differences between what a document tells of files, by sha256, and what they are."""
    for path in sorted({*told, *found}):
        if path not in found:
            yield f"'{path}' is missing, which '{by}' lists"
        elif path not in told:
            yield f"'{path}' is not in '{by}'"
        elif told[path] != found[path]:
            yield f"'{path}' has sha256 {found[path][:_SHOWN]}…: '{by}' says {told[path][:_SHOWN]}…"


def _notes(folder: Path, found: Mapping[str, str], *, has_key: bool) -> Iterator[str]:
    if SIGNATURE_FILE in found and not has_key:
        yield f"'{SIGNATURE_FILE}' lists these files; that it is valid, and whose, only --key can tell"
    elif SIGNATURE_FILE not in found and STATEMENT_FILE not in found:
        yield f"neither signed nor stated: whoever can change the files can change '{MANIFEST_FILE}' with them"
    others = sorted(_others(folder, found))
    if others:
        more = len(others) - _LISTED
        yield f"not part of the release: {', '.join(others[:_LISTED])}{f' and {more} more' if more > 0 else ''}"


def _others(folder: Path, found: Mapping[str, str]) -> Iterator[str]:
    """Files that nobody lists; hidden ones are those of tools."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_hidden and name.as_posix() not in {*found, *HUB_FILES}:
            yield name.as_posix()
