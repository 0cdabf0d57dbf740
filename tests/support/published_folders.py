"""Folders of artifacts with a verdict, made without running anything: for tests of what comes after validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lfm_convert.convert.manifest import MANIFEST_FILE
from lfm_convert.convert.pipeline import convert

_METRICS = {"kld_mean": 0.00065, "kld_se": 0.0001, "same_top1": 0.9835, "ppl_ratio": 1.0006}
_BUDGET = {"name": "size", "device": "", "value": 3_000_000, "limit": 1_000_000, "where": "", "passed": False}


def validated(folder: Path, model: str = "bundled:dense", *, target: str, quants: str) -> Path:
    """Artifacts of a model, each noted as passed."""
    convert(model, target=target, quant=quants, out=folder, validate_after=False, jobs=2)
    note_verdicts(folder)
    return folder


def note_verdicts(folder: Path, quant: str | None = None, **found: Any) -> None:
    """Notes a verdict of all artifacts, or of those of a quant: passed, but for what is given."""

    def noted(manifest: dict[str, Any]) -> None:
        for entry in manifest["artifacts"]:
            if quant in (None, entry["quant"]):
                size = sum(file["bytes"] for file in entry["files"])
                passed = {"verdict": "pass", "fit": "free", "message": "", "budgets": [], "context": 4096}
                shown = {"metrics": _METRICS, "run_bytes": 2 * size, "backend": "a runtime 1.0 CPU, 2 threads"}
                entry["validation"] = {**passed, **shown, "size_bytes": size, **found}

    edit_manifest(folder, noted)


def over_budget(folder: Path, quant: str) -> None:
    note_verdicts(folder, quant, fit="over", budgets=[_BUDGET])


def edit_manifest(folder: Path, change: Any) -> None:
    """Changes the manifest in place, in the form in which it is written."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
