"""One report of all artifacts of a release, whenever each of them was run, and the files that tell of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...graph.files import digest
from ...targets.target import Artifact
from ...validate.formats import write_junit, write_markdown
from ...validate.outputs import write_report
from ...validate.report import write_html
from ...validate.results import ArtifactResult, Occasion, Report, Verdict
from .prepared import Prepared


def _write_json(report: Report, path: Path) -> None:
    write_report(path, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")


WRITERS: Mapping[str, Callable[[Report, Path], None]] = {
    "html": write_html,
    "markdown": write_markdown,
    "junit": write_junit,
    "json": _write_json,
}


def not_made(artifact: Prepared, message: str) -> ArtifactResult:
    """The result of an artifact that there is nothing to run of: a failure, which no report may leave out."""
    plan = artifact.plan
    missing = Artifact(
        path=artifact.folder / plan.main_file,
        folder=artifact.folder,
        target=plan.target,
        quant=plan.quant,
        class_name=plan.class_name,
        files=(),
    )
    return ArtifactResult(artifact=missing, backend="", verdict=Verdict.FAIL, size_bytes=0, message=message)


def merged(reports: Sequence[Report], results: Sequence[ArtifactResult], environment: Mapping[str, object]) -> Report:
    """One report of these results. Of several models it has the names of all, and one hash for their hashes; its date is
    that of the last run.
    """
    models = {report.model: report.occasion.checkpoint_sha256 for report in reports}
    latest = max(reports, key=lambda report: report.occasion.date, default=None)
    stored = ", ".join(dict.fromkeys(each.occasion.quantised_as or "" for each in reports)).strip(", ") or None
    occasion = replace(latest.occasion, checkpoint_sha256=digest(models), quantised_as=stored) if latest else Occasion()
    known = dict(latest.environment if latest else environment)
    return Report(", ".join(models) or "no model", tuple(results), known, occasion)
