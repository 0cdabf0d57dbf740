"""`lfm-convert.json`: what lies in a folder, from which checkpoint, how it was made, and its verdict.

The schema is described in docs/exit-codes.md. It holds no time and no absolute path, so that the same
run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .._version import __version__
from ..graph.adapters.adapter import adapter_label
from ..graph.config import CONFIG_FILE
from ..graph.errors import InputError
from ..graph.files import hash_files, replace_text
from ..graph.graph import WeightGraph
from ..graph.json_text import parse_json
from ..graph.packages import WRITING, versions
from ..graph.progress import SILENT, Progress
from ..graph.source.checkpoint import INDEX_FILE
from ..graph.source.front_matter import front_matter
from ..graph.source.hub import snapshot_of
from ..graph.source.tokenizer import TOKENIZER_FILE
from ..targets.plans import Plan, TensorPlan

MANIFEST_FILE = "lfm-convert.json"
SCHEMA_VERSION = 1
# Of how `parts` of tensors are to be read; entries without it were written before there were any.
LAYOUT_REVISION = 1
_MAX_NAME_BYTES = 255  # of a file, on every file system in use
# What of the checkpoint's own card is kept, for the cards of its artifacts.
_CARD_FIELDS = ("license", "license_name", "license_link", "language", "base_model", "pipeline_tag", "tags")
# What a field of an entry must be, and how that is said.
_KINDS = (
    ("options", dict, "an object"),
    ("tensors", list, "a list"),
    ("validation", dict | None, "an object or null"),
)

# Where adapters' files stand among a source's, and what stands for how they are merged.
ADAPTERS = "adapters/"
_MERGING = f"{ADAPTERS}merging"

Entry = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The manifest of one folder. `artifacts` are in the order of their main files; `shared` are the files that all of
    them use, such as the tokenizer, by path; None in a manifest of before they were noted.
    """

    folder: Path
    source: Mapping[str, Any]
    artifacts: tuple[Entry, ...] = ()
    tool: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Entry] | None = field(default_factory=dict)

    def with_entries(self, entries: Sequence[Entry]) -> Manifest:
        """With these entries added, or in place of those with the same main file."""
        merged = {e["main_file"]: e for e in (*self.artifacts, *entries)}
        return replace(self, artifacts=tuple(merged[name] for name in sorted(merged)))

    def owned_files(self) -> dict[str, Entry]:
        """Every file that a conversion wrote here, by path: its bytes and sha256."""
        files = {file["path"]: file for entry in self.artifacts for file in entry["files"]}
        return {**(self.shared or {}), **files}

    def dumps(self) -> str:
        """As this version writes it, under its own name."""
        return replace(self, tool=this_tool()).as_noted()

    def as_noted(self) -> str:
        """With the tool that the manifest names already."""
        return json.dumps(
            {
                "schema": SCHEMA_VERSION,
                "tool": self.tool,
                "source": self.source,
                **({} if self.shared is None else {"shared": [self.shared[path] for path in sorted(self.shared)]}),
                "artifacts": self.artifacts,
            },
            indent=1,
            ensure_ascii=False,
        )

    def save(self) -> None:
        replace_text(self.folder / MANIFEST_FILE, self.dumps())


def this_tool() -> dict[str, Any]:
    """Name, version and libraries of what runs now."""
    return {"name": "lfm-convert", "version": __version__, "libraries": library_versions()}


def library_versions() -> dict[str, str]:
    """What is recorded of the environment: bytes can depend on it."""
    return {"python": platform.python_version(), **versions(WRITING)}


def source_files(graph: WeightGraph) -> dict[str, Path]:
    """Every file that decides an artifact, by the name it is known under, in the order the manifest lists them: of the
    checkpoint its path there, of an adapter `adapters/1/NAME/` and its path there.
    """
    weights = [stamp.path for stamp in graph.checkpoint.stamps] if graph.checkpoint else []
    paths = weights
    if not (graph.checkpoint and graph.checkpoint.are_all):
        paths = [graph.folder / CONFIG_FILE, *weights]
        paths += [path for name in (INDEX_FILE, TOKENIZER_FILE) if (path := graph.folder / name).is_file()]
    found = {path.relative_to(graph.folder).as_posix(): path for path in paths}
    for number, adapter in enumerate(graph.adapters.adapters if graph.adapters else (), start=1):
        for stamp in adapter.stamps:
            found[_adapter_file(number, adapter.name, stamp.path.relative_to(adapter.folder).as_posix())] = stamp.path
    return found


def merging(graph: WeightGraph) -> dict[str, Any]:
    """How adapters are merged, as a manifest tells it beside their files; nothing of a model without any."""
    if graph.adapters is None:
        return {}
    weights = [adapter.weight for adapter in graph.adapters.adapters]
    return {"weights": weights, "dtype": graph.adapters.dtype and graph.adapters.dtype.value}


def own_files(graph: WeightGraph) -> list[Path]:
    """Every file that belongs to the checkpoint and its adapters: those of their folders, or of a source that is a file
    it and its parts.
    """
    own = [stamp.path for stamp in graph.checkpoint.stamps] if graph.checkpoint and graph.checkpoint.are_all else []
    return own + [path for folder in graph.folders for path in folder.iterdir() if path.is_file()]


def hash_source(graph: WeightGraph, *, progress: Progress = SILENT) -> dict[str, str]:
    """sha256 of the files of checkpoint and adapters as they lie there, by name, and of how these are merged."""
    paths = list(source_files(graph).values())
    return named_hashes(graph, hash_files(paths, jobs=os.cpu_count() or 1, progress=progress))


def named_hashes(graph: WeightGraph, hashes: Sequence[str]) -> dict[str, str]:
    """What `hash_source` gives, of the sha256 of `source_files` in their order."""
    return dict(zip(source_files(graph), hashes, strict=True)) | _merging_hash(merging(graph))


def source_sizes(graph: WeightGraph) -> dict[str, int | str]:
    """What can be seen of files without reading them, by name: bytes; and how adapters are merged."""
    sizes: dict[str, int | str] = {name: path.stat().st_size for name, path in source_files(graph).items()}
    return sizes | _merging_hash(merging(graph))


def describe_source(graph: WeightGraph, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The checkpoint as the manifest names it, with the adapters that are merged into it; `hashes` as `hash_source`."""
    files = source_files(graph)
    found: dict[str, Any] = {
        "name": graph.name,
        "model_type": graph.config.model_type,
        "parameters": graph.n_parameters,
        **({} if graph.quantised_as is None else {"quantised_as": graph.quantised_as}),
        **_origin(graph),
        "files": [
            file_entry(graph.folder, path, hashes[name])
            for name, path in files.items()
            if not name.startswith(ADAPTERS)
        ],
    }
    if graph.adapters is None:
        return found
    adapters = [
        {
            "name": adapter.name,
            "kind": adapter.kind,
            "files": [
                file_entry(adapter.folder, path, hashes[name])
                for name, path in files.items()
                if name.startswith(_adapter_file(number, adapter.name, ""))
            ],
        }
        for number, adapter in enumerate(graph.adapters.adapters, start=1)
    ]
    return {**found, "adapters": adapters, "merging": merging(graph)}


def _adapter_file(number: int, name: str, path: str) -> str:
    return f"{ADAPTERS}{number}/{name}/{path}"


def _merging_hash(how: Mapping[str, Any]) -> dict[str, str]:
    """Weights and type decide an artifact as files do."""
    return {_MERGING: hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()} if how else {}


def _origin(graph: WeightGraph) -> dict[str, Any]:
    """Repository and commit, of a checkpoint from a hub, and what its card says of licence, languages and base."""
    found = snapshot_of(graph.folder)
    card = front_matter(graph.assets.model_card)
    kept = {key: card[key] for key in _CARD_FIELDS if card.get(key)}
    named = {} if found is None else dict(zip(("repository", "revision"), found, strict=True))
    return {**named, **({"card": kept} if kept else {})}


def material_hashes(source: Mapping[str, Any]) -> dict[str, str]:
    """What `hash_source` gave, as a manifest's source lists it."""
    files = {name: str(file["sha256"]) for name, file in _materials(source)}
    return files | _merging_hash(source.get("merging", {}))


def material_sizes(source: Mapping[str, Any]) -> dict[str, int | str]:
    """What `source_sizes` gave, as a manifest's source lists it."""
    files: dict[str, int | str] = {name: file["bytes"] for name, file in _materials(source)}
    return files | _merging_hash(source.get("merging", {}))


def adapter_labels(source: Mapping[str, Any]) -> list[str]:
    """The adapters that a manifest's source names, as notes do."""
    weights = source.get("merging", {}).get("weights", ())
    names = [str(adapter["name"]) for adapter in source.get("adapters", ())]
    return [adapter_label(name, weight) for name, weight in zip(names, weights, strict=True)]


def _materials(source: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    for file in source.get("files", ()):
        yield str(file["path"]), file
    for number, adapter in enumerate(source.get("adapters", ()), start=1):
        for file in adapter["files"]:
            yield _adapter_file(number, adapter["name"], file["path"]), file


def file_entry(folder: Path, path: Path, sha256: str) -> Entry:
    """path (relative, forward slashes), bytes and sha256 of a file."""
    return {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256}


def describe_artifact(
    plan: Plan, staging: Path, hashes: Mapping[str, str], *, options: Mapping[str, Any], inputs: str
) -> Entry:
    """The manifest's entry for a plan that was just written into `staging`; `hashes` go by path.

    `inputs` is the sha256 of what else decided its bytes.
    """
    planned = plan.to_json()
    return {
        "target": plan.target,
        "quant": plan.quant,
        "class": plan.class_name,
        "options": dict(options),
        "inputs": inputs,
        "main_file": plan.main_file,
        "files": [file_entry(staging, staging / file.path, hashes[file.path]) for file in plan.files],
        "layout": LAYOUT_REVISION,
        "tensor_bytes": plan.tensor_bytes,
        "tensors": describe_tensors(plan),
        "fallbacks": planned["fallbacks"],
        "notes": planned["notes"],
        **({"tuned": planned["tuned"]} if plan.tuned else {}),
        "validation": None,
    }


def describe_tensors(plan: Plan) -> list[Entry]:
    """Every stored tensor of a plan, and where its parts lie."""
    listed: list[Entry] = plan.to_json()["tensors"]
    return [{**entry, **_parts(tensor, plan)} for tensor, entry in zip(plan.tensors, listed, strict=True)]


def without_places(tensors: Sequence[Entry]) -> list[Entry]:
    """What tensors are stored as, wherever they lie: manifests of before did not say where."""
    return [{key: value for key, value in tensor.items() if key != "parts"} for tensor in tensors]


def _parts(tensor: TensorPlan, plan: Plan) -> dict[str, Any]:
    """Where each part of a tensor lies; nothing of formats whose files say it themselves after they were compiled."""
    paths = {file.path for file in plan.files}
    if any(place.path not in paths for place in tensor.placements):
        return {}
    return {"parts": [{"path": place.path, "offset": place.offset} for place in tensor.placements]}


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if there is none.

    Raises: InputError if it is malformed or of a newer schema.
    """
    path = folder / MANIFEST_FILE
    try:
        data = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA_VERSION:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path}: expected manifest schema {SCHEMA_VERSION}, found {found!r}")
    try:
        entries = tuple(dict(entry) for entry in data["artifacts"])
        for entry in entries:
            _check_entry(path, entry)
        shared = {str(f["path"]): dict(f) for f in data["shared"]} if "shared" in data else None
        for file in (shared or {}).values():
            _check_file(path, file)
        source = dict(data["source"])
        if "adapters" in source:  # which sentences will name
            material_hashes(source), adapter_labels(source)
        return Manifest(folder, source, entries, dict(data["tool"]), shared)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: malformed manifest: {error!r}") from None


def _check_entry(path: Path, entry: Entry) -> None:
    """Raises InputError for an entry that its readers could not trust."""
    for key in ("main_file", "target", "quant", "class"):
        if not isinstance(entry[key], str):
            raise InputError(f"{path}: '{key}' of an artifact must be text, found {entry[key]!r:.80}")
    _check_path(path, entry["main_file"])
    for file in entry["files"]:
        _check_file(path, file)
    for key, kind, word in _KINDS:
        if not isinstance(entry[key], kind):
            raise InputError(f"{path}: '{key}' of {entry['main_file']} must be {word}, found {entry[key]!r:.80}")
    for tensor in entry["tensors"]:
        if not isinstance(tensor["encoding"], str) or type(tensor["bytes"]) is not int:
            raise InputError(
                f"{path}: a tensor of {entry['main_file']} needs 'encoding', a text, and 'bytes', a number"
            )
        for part in tensor.get("parts", ()):
            _check_part(path, entry, part)


def _check_part(path: Path, entry: Entry, part: Entry) -> None:
    """A part lies in one of the artifact's own files."""
    if part["path"] not in [file["path"] for file in entry["files"]]:
        raise InputError(
            f"{path}: a tensor of {entry['main_file']} lies in {part['path']!r:.80}, which is none of its files"
        )
    if type(part["offset"]) is not int or part["offset"] < 0:
        raise InputError(f"{path}: 'offset' of a tensor of {entry['main_file']} must be a number of bytes")


def _check_file(path: Path, file: Entry) -> None:
    _check_path(path, file["path"])
    if type(file["bytes"]) is not int or not isinstance(file["sha256"], str):
        raise InputError(f"{path}: file '{file['path']}' needs 'bytes', a number, and 'sha256', a text")


def _check_path(path: Path, name: Any) -> None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        raise InputError(f"{path}: file '{name}' lies outside the folder")
    if "\0" in name or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts):
        raise InputError(f"{path}: {name!r:.80} cannot be the name of a file")
