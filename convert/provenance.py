"""Which checkpoint an artifact was made from: what its manifest says, held against the one it is to be compared with.

A fine-tune differs from its base by so little that no limit of divergence sees it; the hashes of the files do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..graph.config import CONFIG_FILE
from ..graph.errors import UsageError
from ..graph.files import hash_files
from ..targets.target import Artifact
from .bundled import NAMES
from .manifest import ADAPTERS, Manifest, adapter_labels, load_manifest, material_hashes
from .source import Source, find_model, nearby_model

_SHOWN = 12  # characters of a hash


def find_source(
    artifacts: Sequence[Artifact], *, has_adapters: bool = False, revision: str | None = None, offline: bool = False
) -> Source:
    """The checkpoint that artifacts were made from, where no reference was given: the settings file's, the current
    folder's or a bundled one, whichever has the config that their manifest lists. `has_adapters` says that adapters to
    merge into it are given.

    Raises: UsageError if none of them is it, an artifact has no manifest to say which it was, or was made with adapters
    and none are given.
    """
    unknown = next((artifact for artifact in artifacts if artifact.is_recognised), None)
    if unknown is not None:
        raise UsageError(f"--reference is needed: {unknown.label} has no manifest that says what it was made from")
    sources = [manifest.source for manifest in _manifests(artifacts).values()]
    merged = dict.fromkeys(label for source in sources for label in adapter_labels(source))
    candidates = [nearby_model(revision=revision, offline=offline), *(find_model(f"bundled:{name}") for name in NAMES)]
    for found in candidates:
        if found is not None and sources and all(_is_source_of(found.path, source) for source in sources):
            if merged and not (has_adapters or found.adapters.choices):
                raise UsageError(f"--adapter is needed: the artifacts were made with {', '.join(merged)}")
            return found
    names = ", ".join(dict.fromkeys(str(source.get("name")) for source in sources)) or "no manifest says what"
    raise UsageError(f"--reference is needed: the artifacts were made from {names}, which is not at hand here")


def listed_hashes(artifacts: Sequence[Artifact]) -> dict[str, str] | None:
    """sha256 by path of the files that all artifacts say they were made from; None where they do not say it as one."""
    sources = [material_hashes(manifest.source) for manifest in _manifests(artifacts).values()]
    is_one = len(sources) > 0 and all(source == sources[0] for source in sources)
    return sources[0] if is_one and not any(artifact.is_recognised for artifact in artifacts) else None


def foreign(artifacts: Sequence[Artifact], name: str, own: Mapping[str, str]) -> dict[Path, str]:
    """Why artifacts are not of this checkpoint, by their path; nothing of those that are, or have no manifest.

    `own` are the hashes of the checkpoint's files, see `hash_source`.
    """
    manifests = _manifests(artifacts)
    sentences = {folder: _difference(manifest.source, name, own) for folder, manifest in manifests.items()}
    own_artifacts = (each for each in artifacts if not each.is_recognised)
    return {a.path: sentence for a in own_artifacts if (sentence := sentences.get(a.folder))}


def _manifests(artifacts: Sequence[Artifact]) -> dict[Path, Manifest]:
    """The manifest of each artifact's folder, if one lists it."""
    found = {each.folder: load_manifest(each.folder) for each in artifacts if not each.is_recognised}
    return {folder: manifest for folder, manifest in found.items() if manifest is not None}


def _is_source_of(path: Path, source: Mapping[str, Any]) -> bool:
    """Whether a file, or a folder's config, is the one that a manifest lists."""
    path = path / CONFIG_FILE if path.is_dir() else path
    listed = material_hashes(source).get(path.name)
    return listed is not None and path.is_file() and hash_files([path], jobs=1) == [listed]


def _difference(source: Mapping[str, Any], name: str, own: Mapping[str, str]) -> str:
    """The first file that is another one; empty if none is."""
    listed, adapters = material_hashes(source), adapter_labels(source)
    if adapters and not any(name.startswith(ADAPTERS) for name in own):
        return (
            f"it was made with the adapters {', '.join(adapters)}, and {name} is without: name them with --adapter; "
            "--other-reference compares with another checkpoint on purpose"
        )
    if sorted(listed.values()) == sorted(own.values()):  # whatever they are called
        return ""
    for path in (*listed, *own):
        wanted, found = listed.get(path), own.get(path)
        if wanted != found:
            was = f"sha256 {wanted[:_SHOWN]}…" if wanted else "not there"
            now = f"{found[:_SHOWN]}…" if found else "not there"
            return (
                f"it was made from another checkpoint than {name}: of {source.get('name')} '{path}' was {was}, here it "
                f"is {now}; --other-reference compares with another checkpoint on purpose"
            )
    return ""
