"""Carries a release out: its steps in order, each if it is not done, and what failed stops only what needs it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ...graph.errors import DiskError, ExitCode, LfmConvertError
from ...graph.progress import SILENT, Progress
from ...validate.baseline import load_baseline
from ...validate.outputs import check_reports
from ...validate.results import ArtifactResult, Report, describe_environment
from ..destination import owned
from ..failures import explained
from ..stopping import raise_if_heard
from .outcome import End, Ended, Outcome
from .prepared import Preparation
from .reporting import WRITERS, merged, not_made
from .sharing import steps_behind
from .state import State, content_key
from .steps import Calibrate, Convert, Reference, Site, Step, Validate

STATE_FILE = "state.json"


def site_of(preparation: Preparation, **how: object) -> Site:
    """Where the steps of a release are done. Raises: InputError for a baseline that cannot be read."""
    recipe = preparation.recipe
    stored = recipe.validation.get("baseline")
    try:
        baseline = None if stored is None else load_baseline(recipe.seen(stored))
    except LfmConvertError as error:
        raise recipe.text.blame(("validation", "baseline"), error) from None
    state = State(preparation.private / STATE_FILE)
    return Site(preparation=preparation, state=state, baseline=baseline, **how)  # type: ignore[arg-type]


def steps_of(site: Site, *, publishes: bool = False) -> list[Step]:
    """The graph of a release, what is needed first: all conversions, all comparisons, cards, publication."""
    preparation = site.preparation
    calibrated = {each.wanted.model.label for each in preparation.artifacts if each.wanted.entry.calibrated}
    calibrations = {label: Calibrate(site, label) for label in preparation.graphs if label in calibrated}
    references = {label: Reference(site, label) for label in preparation.graphs}
    conversions = [
        Convert(site, each, calibrations.get(each.wanted.model.label) if each.wanted.entry.calibrated else None)
        for each in preparation.artifacts
    ]
    comparisons = [Validate(site, each, references[each.artifact.wanted.model.label]) for each in conversions]
    shown = steps_behind(site, comparisons, publishes=publishes)
    return [*calibrations.values(), *conversions, *references.values(), *comparisons, *shown]


def carry_out(
    preparation: Preparation,
    *,
    publishes: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Does what is left to do of a release, and reports on all of it; `publishes` sends what passed to its repositories.

    What is wrong with one artifact is in the outcome. Raises: DiskError if another run writes there, or reports cannot be
    written; whatever ends the run, what is done is done.
    """
    check_reports(preparation.reports.values())
    with owned(preparation.private):
        site = site_of(preparation, progress=progress, overwrite=overwrite, jobs=jobs)
        ends: dict[Step, Ended] = {}
        steps = steps_of(site, publishes=publishes)
        try:
            for step in steps:
                if not step.on_demand:
                    _bring(step, ends, progress)
            report = _reported(site, steps, ends)
            _write_reports(site, report)
        finally:
            with suppress(DiskError):
                site.state.save()
    names = [each.name for each in preparation.artifacts]
    return Outcome(steps=[ends[step] for step in steps if step in ends], names=names, report=report)


def _bring(step: Step, ends: dict[Step, Ended], progress: Progress) -> Ended:
    """A step's end: as it was, or done now after what it needs."""
    if step not in ends:
        ends[step] = _end(step, ends, progress)
    return ends[step]


def _end(step: Step, ends: dict[Step, Ended], progress: Progress) -> Ended:
    start = time.monotonic()
    try:
        if missing := _first_failed(step, ends, progress, on_demand=False):
            return Ended(step=step, end=End.SKIPPED, message=missing.message)
        if step.is_done():
            return Ended(step=step, end=End.LEFT)
        if missing := _first_failed(step, ends, progress, on_demand=True):
            return Ended(step=step, end=End.SKIPPED, message=missing.message)
        start = time.monotonic()
        step.carry_out()
    except Exception as error:
        raise_if_heard(error)
        code, sentence = explained(error)
        if code is ExitCode.INTERNAL:  # there is no second run in which --debug would show it
            progress.note(traceback.format_exc())
        progress.note(f"{step.label}: failed: {sentence}")
        return Ended(step=step, end=End.FAILED, seconds=time.monotonic() - start, code=code, message=sentence)
    seconds = time.monotonic() - start
    progress.note(f"{step.label}: done in {seconds:.1f} s")
    return Ended(step=step, end=End.DONE, seconds=seconds)


def _first_failed(step: Step, ends: dict[Step, Ended], progress: Progress, *, on_demand: bool) -> Ended | None:
    """The end of the first step that this one needs and that did not come to its own."""
    found = (_bring(need, ends, progress) for need in step.needs if need.on_demand == on_demand)
    return next((each for each in found if each.end in (End.FAILED, End.SKIPPED)), None)


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
        name = f"report {path}"
        if path.is_file() and site.state.made.get(name) == f"{key} {site.state.hashes([path])[0]}":
            continue
        start = time.monotonic()
        WRITERS[kind](report, path)
        site.state.finished(name, time.monotonic() - start, **{name: f"{key} {site.state.hashes([path])[0]}"})
