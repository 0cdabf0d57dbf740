"""From a folder of artifacts to the contents of repositories, each with its card; whatever must not be sent is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...graph.errors import InputError, UsageError
from ...graph.files import hash_files, is_file
from ...graph.source.assets import LICENSES
from ...graph.source.hub import HUB_ID
from ..artifacts import is_own
from ..manifest import MANIFEST_FILE, Entry, Manifest
from .card import CardSource, card_text, check_card, refuse_lost_licence
from .contents import Contents, compose
from .gate import refuse_unproven
from .names import CARD_FILE
from .repositories import assign, choose, open_folder

_SHOWN = 12  # characters of a hash


def assemble(
    folder: Path,
    to: str,
    *,
    only: Sequence[str] = (),
    base_model: str | None = None,
    reports: Sequence[Path] = (),
) -> list[Contents]:
    """The repositories of a folder, with their cards, and reports if there are any. Nothing is hashed yet or sent.

    Raises: UsageError, QualityError, BudgetError or InputError for what cannot or must not be published.
    """
    manifest = open_folder(folder)
    entries = choose(folder, manifest, only)
    assigned = assign(manifest, entries, to)
    refuse_unproven(folder, entries)
    contents = [compose(folder, manifest, sharing, repo) for repo, sharing in assigned.items()]
    return [with_reports(with_card(each, manifest, base_model=base_model), reports) for each in contents]


def with_card(contents: Contents, manifest: Manifest, *, base_model: str | None = None) -> Contents:
    """With a card: the user's own, else one that is made of the manifest, which then lists it.

    `manifest` is that of the folder. Contents that are sealed keep what they have.
    Raises: InputError for a card of the user's that a hub would not take; UsageError for a licence that would not go along.
    """
    source = card_source(contents, base_model=base_model)
    if contents.is_sealed:
        return contents
    own = _own_card(contents, manifest)
    text = (card_text(source) if own is None else own).encode()
    listed = listing_card(contents.manifest, text if own is None else None)
    if listed == contents.manifest:
        return contents.with_texts({CARD_FILE: text})
    changed = contents.with_texts({CARD_FILE: text, MANIFEST_FILE: listed.as_noted().encode()}, listed)
    return replace(changed, as_they_lie=False)


def card_source(contents: Contents, *, base_model: str | None) -> CardSource:
    """What the card of contents is made of. Raises: UsageError for a licence that would not go along."""
    license_file = next((name for name in LICENSES if name in contents.files), None)
    refuse_lost_licence(contents.folder, contents.manifest, license_file)
    return CardSource(
        repo=contents.repo,
        target=contents.target,
        manifest=contents.manifest,
        base_model=known_base(contents.manifest, base_model),
        license_file=license_file,
    )


def _own_card(contents: Contents, manifest: Manifest) -> str | None:
    """The user's card of a repository that is an artifact's own folder, or else of the whole folder."""
    at_root = contents.files.get(CARD_FILE)
    own = None
    if at_root is not None:
        own = users_card(at_root, contents.folder, contents.manifest.owned_files().get(CARD_FILE))
    if own is None and at_root != contents.folder / CARD_FILE:
        own = users_card(contents.folder / CARD_FILE, contents.folder, (manifest.shared or {}).get(CARD_FILE))
    return own


def users_card(path: Path, folder: Path, listed: Entry | None) -> str | None:
    """A card that no run of ours wrote, or that was changed since it was `listed`; None if there is none.

    Raises: InputError for one that a hub would not take, or a link out of the folder.
    """
    if not is_file(path):
        return None
    if not is_own(path, folder):
        raise InputError(f"{path}: is a link to {path.resolve()}, outside the folder")
    if listed is not None and hash_files([path], jobs=1) == [listed["sha256"]]:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8: {error}") from None
    check_card(text, path)
    return text


def known_base(manifest: Manifest, given: str | None) -> str | None:
    """The hub id of the checkpoint: as it is given, or as it was fetched; None if neither is.

    Raises: UsageError for what is no hub id.
    """
    if given is not None and not HUB_ID.fullmatch(given):
        raise UsageError(f"--base-model {given}: is no repository of a hub: expected ORG/NAME")
    return given or manifest.source.get("repository")


def listing_card(manifest: Manifest, text: bytes | None) -> Manifest:
    """The manifest with a card of ours in place of any it lists, an artifact's own too; with None it lists none."""
    shared = {path: entry for path, entry in (manifest.shared or {}).items() if path != CARD_FILE}
    artifacts = tuple(_without_card(entry) for entry in manifest.artifacts)
    without = replace(manifest, shared=shared, artifacts=artifacts)
    return without if text is None else _listing(without, CARD_FILE, text)


def with_reports(contents: Contents, reports: Sequence[Path]) -> Contents:
    """With reports of the validation, under their names, which the manifest then lists.

    Raises: UsageError for a name that another file has, or contents that are sealed; InputError for a report that cannot
    be read, or does not tell of the very files of each artifact.
    """
    if reports and contents.is_sealed:
        raise UsageError(f"--report: {contents.folder} is signed without it: sign with --sign-key, or leave it out")
    for path in reports:
        if path.name in contents.paths:
            raise UsageError(f"--report {path}: {contents.repo} has a file {path.name} already: give it another name")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
        _refuse_other_report(path, data, contents.manifest)
        listed = _listing(contents.manifest, path.name, data)
        changed = contents.with_texts({path.name: data, MANIFEST_FILE: listed.as_noted().encode()}, listed)
        contents = replace(changed, as_they_lie=False)
    return contents


def _refuse_other_report(path: Path, data: bytes, manifest: Manifest) -> None:
    """Reports name each file with its hash, whatever their format."""
    for entry in manifest.artifacts:
        for file in entry["files"]:
            if file["sha256"].encode() not in data:
                raise InputError(
                    f"{path}: does not tell of {file['path']} as it is, sha256 {file['sha256'][:_SHOWN]}…: it is of another "
                    "validation"
                )


def _listing(manifest: Manifest, path: str, data: bytes) -> Manifest:
    entry = {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return replace(manifest, shared={**(manifest.shared or {}), path: entry})


def _without_card(entry: Entry) -> Entry:
    return {**entry, "files": [file for file in entry["files"] if file["path"] != CARD_FILE]}
