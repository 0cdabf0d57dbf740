"""Carries a release out, each step if it is not done, and reports on all of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ...graph.errors import DiskError
from ...graph.progress import SILENT, Progress
from ...validate.outputs import check_reports
from ...validate.results import ArtifactResult, Report, describe_environment
from ..destination import owned
from ..failures import explained
from ..stopping import raise_if_heard
from .hands import Hands, InTurn
from .outcome import End, Ended, Outcome
from .planning import site_of, steps_of
from .prepared import Preparation
from .reporting import WRITERS, merged, not_made
from .site import Site, Step
from .state import content_key
from .steps import Validate


def carry_out(
    preparation: Preparation,
    *,
    publishes: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    hands: Hands | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Does what is left to do of a release, and reports on all of it; `publishes` sends what passed to its repositories.

    Without other `hands` this process does it, one step after the other.
    What is wrong with one artifact is in the outcome. Raises: DiskError if another run writes there, or reports cannot be
    written; whatever ends the run, what is done is done.
    """
    check_reports(preparation.reports.values())
    hands = hands or InTurn()
    with owned(preparation.private):
        site = site_of(preparation, progress=progress, overwrite=overwrite, jobs=jobs)
        steps = steps_of(site, publishes=publishes)
        hands.check(site, steps)
        try:
            ends = hands.bring(steps, progress)
            report = _reported(site, steps, ends)
            _write_reports(site, report)
        finally:
            with suppress(DiskError):
                site.state.save()
        preparation.output.send()
    names = [each.name for each in preparation.artifacts]
    return Outcome(steps=[ends[step] for step in steps if step in ends], names=names, report=report)


def _reported(site: Site, steps: Sequence[Step], ends: dict[Step, Ended]) -> Report:
    """What there is to say of every artifact, in the recipe's order, judged by the recipe as it is now."""
    reports: list[Report] = []
    results: list[ArtifactResult] = []
    for step in steps:
        if not isinstance(step, Validate):
            continue
        ended = ends[step]
        if ended.end in (End.DONE, End.LEFT):
            try:
                reports.append(step.judged())
                results += reports[-1].results
                continue
            except Exception as error:
                raise_if_heard(error)
                code, sentence = explained(error)
                ended = ends[step] = replace(ended, end=End.FAILED, code=code, message=sentence)
        results.append(not_made(step.conversion.artifact, ended.message))
    if len(site.preparation.graphs) > 1:
        names = (each.graph.name for each in site.preparation.artifacts)
        results = [replace(result, model=name) for result, name in zip(results, names, strict=True)]
    return merged(reports, results, describe_environment(threads=site.preparation.threads))


def _write_reports(site: Site, report: Report) -> None:
    """Writes the recipe's reports, but for those that are there and say the same. Raises: DiskError."""
    findings = [result.findings() for result in report.results] if site.preparation.reports else []
    for kind, path in site.preparation.reports.items():
        key = content_key(kind, report.model, report.occasion.date, findings)
        name = f"report {site.place(path) if path.is_relative_to(site.preparation.out) else path}"
        if path.is_file() and site.state.made.get(name) == f"{key} {site.state.hashes([path])[0]}":
            continue
        start = time.monotonic()
        WRITERS[kind](report, path)
        site.state.finished(name, time.monotonic() - start, **{name: f"{key} {site.state.hashes([path])[0]}"})
