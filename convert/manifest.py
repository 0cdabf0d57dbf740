"""`lfm-convert.json`: what lies in a folder, from which checkpoint, how it was made, and its verdict.

The schema is described in docs/exit-codes.md. It holds no time and no absolute path, so that the same
run gives the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from .errors import InputError
from .files import hash_files, replace_text
from .model.checkpoint import INDEX_FILE
from .model.config import CONFIG_FILE
from .model.graph import WeightGraph
from .model.tokenizer import TOKENIZER_FILE
from .plans import Plan
from .progress import Progress

MANIFEST_FILE = "lfm-convert.json"
SCHEMA_VERSION = 1
_LIBRARIES = ("numpy", "onnx", "tokenizers")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The manifest of one folder. `artifacts` are in the order of their main files."""

    folder: Path
    source: Mapping[str, Any]
    artifacts: tuple[Entry, ...] = ()
    tool: Mapping[str, Any] = field(default_factory=dict)

    def with_entries(self, entries: Sequence[Entry]) -> Manifest:
        """With these entries added, or in place of those with the same main file."""
        merged = {e["main_file"]: e for e in (*self.artifacts, *entries)}
        return replace(self, artifacts=tuple(merged[name] for name in sorted(merged)))

    def dumps(self) -> str:
        return json.dumps(
            {
                "schema": SCHEMA_VERSION,
                "tool": {"name": "lfm-convert", "version": __version__, "libraries": _versions()},
                "source": self.source,
                "artifacts": self.artifacts,
            },
            indent=1,
            ensure_ascii=False,
        )

    def save(self) -> None:
        replace_text(self.folder / MANIFEST_FILE, self.dumps())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_source(graph: WeightGraph, *, jobs: int, progress: Progress) -> dict[str, Any]:
    """The checkpoint as the manifest names it: every file that decides the artifact, with its hash."""
    paths = [graph.folder / CONFIG_FILE]
    paths += [stamp.path for stamp in graph.checkpoint.stamps] if graph.checkpoint else []
    paths += [path for name in (INDEX_FILE, TOKENIZER_FILE) if (path := graph.folder / name).is_file()]
    return {
        "name": graph.name,
        "model_type": graph.config.model_type,
        "parameters": graph.n_parameters,
        "files": file_entries(graph.folder, paths, jobs=jobs, progress=progress),
    }


def file_entries(folder: Path, paths: Sequence[Path], *, jobs: int, progress: Progress) -> list[dict[str, Any]]:
    """path (relative, forward slashes), bytes and sha256 of each file."""
    hashes = hash_files(paths, jobs=jobs, progress=progress)
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    ]


def describe_artifact(plan: Plan, staging: Path, *, options: Mapping[str, Any], jobs: int, progress: Progress) -> Entry:
    """The manifest's entry for a plan that was just written into `staging`."""
    planned = plan.to_json()
    return {
        "target": plan.target,
        "quant": plan.quant,
        "class": plan.class_name,
        "options": dict(options),
        "main_file": plan.main_file,
        "files": file_entries(staging, [staging / file.path for file in plan.files], jobs=jobs, progress=progress),
        "tensor_bytes": plan.tensor_bytes,
        "tensors": planned["tensors"],
        "fallbacks": planned["fallbacks"],
        "notes": planned["notes"],
        "validation": None,
    }


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None if there is none.

    Raises: InputError if it is malformed or of a newer schema.
    """
    path = folder / MANIFEST_FILE
    try:
        data = json.loads(path.read_bytes())
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
        return Manifest(folder, dict(data["source"]), entries, dict(data["tool"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: malformed manifest: {error!r}") from None


def _check_entry(path: Path, entry: Entry) -> None:
    for name in (entry["main_file"], *(file["path"] for file in entry["files"])):
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts:
            raise InputError(f"{path}: file '{name}' lies outside the folder")
    for key in ("target", "quant", "class"):
        if not isinstance(entry[key], str):
            raise InputError(f"{path}: '{key}' of {entry['main_file']} must be text")
