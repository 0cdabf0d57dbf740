"""Which artifacts of a folder go to which repository."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...graph.errors import InputError, UsageError
from ...graph.source.hub import HUB_ID
from ...targets.naming import fit_name
from ..destination import settle
from ..manifest import MANIFEST_FILE, Entry, Manifest, load_manifest
from .ecosystems import ECOSYSTEMS

_FIELD = re.compile(r"\{(\w*)\}")


def open_folder(folder: Path) -> Manifest:
    """The manifest of a folder of artifacts. Raises: InputError if there is no such folder, or it has no manifest."""
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file' if folder.exists() else 'not found'}; expected a folder of artifacts")
    settle(folder)
    manifest = load_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: holds no {MANIFEST_FILE}, which 'lfm-convert convert' writes beside artifacts")
    if not manifest.artifacts:
        raise InputError(f"{folder / MANIFEST_FILE}: lists no artifact")
    return manifest


def refuse_incomplete(folder: Path, manifest: Manifest) -> None:
    """Raises InputError for a manifest that does not say which files go with its artifacts."""
    if manifest.shared is None:
        raise InputError(
            f"{folder / MANIFEST_FILE}: is of before shared files were noted: convert once more, with --overwrite"
        )


def choose(folder: Path, manifest: Manifest, only: Sequence[str]) -> list[Entry]:
    """The artifacts whose target, quant or main file is one of these names; all without any.

    Raises: UsageError for a name that none of them has.
    """
    chosen = [entry for entry in manifest.artifacts if not only or any(name in _names(entry) for name in only)]
    unknown = [name for name in only if not any(name in _names(entry) for entry in manifest.artifacts)]
    if unknown:
        there = ", ".join(f"{entry['target']} {entry['quant']}" for entry in manifest.artifacts)
        raise UsageError(f"--only {unknown[0]}: {folder} holds {there}")
    return chosen


def assign(manifest: Manifest, entries: Sequence[Entry], to: str) -> dict[str, list[Entry]]:
    """Artifacts by their repository. `to` is its name, in which `{model}`, `{TARGET}`, `{target}` and `{quant}` stand for
    what each artifact is.

    Raises: UsageError for a name that no repository can have, or that artifacts which cannot lie together would share.
    """
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(_repository(manifest, entry, to), []).append(entry)
    for repo, sharing in found.items():
        targets = sorted({entry["target"] for entry in sharing})
        if len(targets) > 1:
            raise UsageError(
                f"--to {to}: {repo} would hold artifacts for {' and '.join(targets)}, which clients look for in "
                "repositories of their own: write {TARGET} in the name, or choose with --only"
            )
        if len(sharing) > 1 and ECOSYSTEMS[targets[0]].is_alone:
            raise UsageError(
                f"--to {to}: {repo} would hold {len(sharing)} artifacts for {targets[0]}, and its clients load a whole "
                "repository as one: write {quant} in the name, or choose with --only"
            )
    return found


def _names(entry: Entry) -> set[str]:
    return {entry["target"], entry["quant"], entry["main_file"], Path(entry["main_file"]).name}


def _repository(manifest: Manifest, entry: Entry, to: str) -> str:
    values = {
        "model": fit_name(str(manifest.source.get("name", "model")), ""),
        "TARGET": ECOSYSTEMS[entry["target"]].suffix,
        "target": entry["target"],
        "quant": entry["quant"],
    }
    repo = _FIELD.sub(lambda field: _value(values, field[1], to), to)
    _refuse_unfit(repo, to)
    return repo


def _value(values: Mapping[str, str], field: str, to: str) -> str:
    if field not in values:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise UsageError(f"--to {to}: there is no {{{field}}}: expected {known}")
    return values[field]


def _refuse_unfit(repo: str, to: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    told = f"--to {to}: '{repo}'" if repo != to else f"--to {to}:"
    if not HUB_ID.fullmatch(repo):
        raise UsageError(f"{told} is no repository of a hub: expected ORG/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"{told} is no repository of a hub: {error}") from None
