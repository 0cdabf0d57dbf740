"""Where files come from, as an in-toto statement with a SLSA provenance: what attestation tools read and sign.

Everything is the manifest's, from the checkpoint's files to the artifacts; it holds no time and no path of this machine.
Source: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ...graph.json_text import read_object
from ..manifest import ADAPTERS, Manifest, material_hashes

_STATEMENT = "https://in-toto.io/Statement/v1"
_PROVENANCE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:lfm-convert:convert:v1"


def provenance(manifest: Manifest, hashes: Mapping[str, str]) -> bytes:
    """The statement that files of these sha256, by path, were made as the manifest says."""
    tool, source = manifest.tool, manifest.source
    libraries = tool.get("libraries", {})
    kept = ("target", "quant", "options", "inputs", "main_file")
    artifacts = [{key: entry[key] for key in kept if key in entry} for entry in manifest.artifacts]
    origin = {key: source[key] for key in ("name", "repository", "revision", "merging") if key in source}
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": hashes[path]}} for path in sorted(hashes)],
        "predicateType": _PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"checkpoint": origin, "artifacts": artifacts},
                "internalParameters": {"libraries": libraries},
                "resolvedDependencies": _materials(source),
            },
            "runDetails": {
                "builder": {
                    "id": f"pkg:pypi/lfm-convert@{tool.get('version', '')}",
                    "version": {"lfm-convert": tool.get("version", ""), **libraries},
                },
                "byproducts": [{"name": "verdicts", "annotations": {"verdicts": _verdicts(manifest)}}],
            },
        },
    }
    return (json.dumps(statement, indent=1, ensure_ascii=False) + "\n").encode()


def read_subjects(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a statement is about and what that was made from: sha256 by path. Raises: InputError for another document."""
    data = read_object(path)
    try:
        if data["_type"] != _STATEMENT or data["predicateType"] != _PROVENANCE:
            raise KeyError("predicateType")
        materials = data["predicate"]["buildDefinition"]["resolvedDependencies"]
        return _digests(data["subject"]), _digests(materials)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: is no in-toto statement of provenance: {error!r}") from None


def _materials(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    repository, revision = source.get("repository"), source.get("revision")
    place = f"hf://{repository}@{revision}/" if repository else None
    return [
        {
            "name": name,
            **({"uri": f"{place}{name}"} if place and not name.startswith(ADAPTERS) else {}),
            "digest": {"sha256": sha256},
        }
        for name, sha256 in material_hashes(source).items()
    ]


def _verdicts(manifest: Manifest) -> dict[str, str]:
    return {entry["main_file"]: (entry["validation"] or {}).get("verdict", "none") for entry in manifest.artifacts}


def _digests(listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {str(each["name"]): str(each["digest"]["sha256"]) for each in listed}
