"""A step as data, for who carries it out elsewhere: the recipe, the step's name, and what it reads; it is rebuilt there."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...graph.errors import ExitCode, InputError
from ...graph.progress import SILENT, Progress
from ...graph.source.urls import Remote, open_url
from ..failures import explained
from ..recipe.reading import Recipe, parse_recipe
from ..stopping import raise_if_heard
from .machines import own_facts, refuse_others
from .output import Folder
from .parts import Made, pull, push_all
from .planning import STATE_FILE, steps_of
from .prepared import prepare
from .site import Site
from .state import State
from .wanted import expand

# Keys of [validation] that are about the machine on which a release is started.
_ITS_OWN = ("reference_cache", "baseline", "require_baseline")


@dataclass(frozen=True, kw_only=True)
class Job:
    """`step` is the step's label, `artifact` the name of one artifact that it is for, `recipe` the text that lies at `path`.

    `store` is the output's URL; other places are seen from there. `inputs` are files of the recipe, and `pulls` files of
    the output, each with its place and sha256; what is made is pushed to `push`. `sources` are the sha256 of the
    checkpoint's files, and `facts` those of the machine, where the release was started.
    """

    step: str
    artifact: str
    recipe: str
    path: str
    store: str
    inputs: Mapping[str, tuple[str, str]]
    pulls: Mapping[str, tuple[str, str]]
    push: str
    sources: Mapping[str, str]
    facts: Mapping[str, str]
    jobs: int | None = None
    offline: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def carry_out(job: Mapping[str, Any], scratch: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Carries a job out in an empty folder; what `made_of` reads: what it made, or how it failed."""
    start = time.monotonic()
    notes: list[str] = []
    noting = replace(progress, note=notes.append)
    try:
        files, findings = _carried_out(Job(**job), scratch, noting)
    except Exception as error:
        raise_if_heard(error)
        code, sentence = explained(error)
        if code is ExitCode.INTERNAL:
            notes.append(traceback.format_exc())
        return {"code": int(code), "sentence": sentence, "notes": notes}
    return {"files": files, "findings": findings, "notes": notes, "seconds": time.monotonic() - start}


def failure(code: ExitCode, sentence: str) -> dict[str, Any]:
    """The outcome of a job that nobody could carry out."""
    return {"code": int(code), "sentence": sentence, "notes": []}


def made_of(outcome: Mapping[str, Any], place: Remote) -> Made:
    """What a job made. Raises: JobFailed."""
    if "code" in outcome:
        raise JobFailed(ExitCode(outcome["code"]), outcome["sentence"])
    found = {key: outcome[key] for key in ("files", "findings", "seconds")}
    return Made(place=place, **found)


class JobFailed(Exception):
    """A job failed elsewhere, in this way."""

    def __init__(self, code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def _carried_out(job: Job, scratch: Path, progress: Progress) -> tuple[dict[str, str], Any]:
    """sha256 by path of the files that were pushed, and findings."""
    refuse_others({platform.node(): {"facts": own_facts()}}, job.facts)  # a worker that came later was not asked
    store, out = open_url(job.store), scratch / "out"
    recipe = _recipe(job, store, scratch)
    for name, (place, sha256) in job.pulls.items():
        pull(store / place, out / name, sha256)
    wanted = [each for each in expand(recipe) if each.name == job.artifact]
    preparation = prepare(recipe, wanted, output=Folder(out), offline=job.offline, progress=progress)
    state = State(preparation.private / STATE_FILE)
    site = Site(preparation=preparation, state=state, progress=progress, jobs=job.jobs)
    for label, graph in preparation.graphs.items():
        found = site.source_hashes(label)
        if found != job.sources:
            other = sorted(name for name in {*found, *job.sources} if found.get(name) != job.sources.get(name))
            raise InputError(
                f"{graph.folder}: {', '.join(other[:3])} {'is' if len(other) == 1 else 'are'} not what the release was "
                "started with: another checkpoint lies there on this machine"
            )
    step = next(step for step in steps_of(site) if step.label == job.step)
    step.carry_out()
    return push_all(step.products(), root=out, place=store / job.push), step.findings()


def _recipe(job: Job, store: Remote, scratch: Path) -> Recipe:
    """The recipe with its files here, each in a folder of its own, since its name may be told."""
    inputs: dict[Path, Path] = {}
    for number, (word, (place, sha256)) in enumerate(job.inputs.items()):
        inputs[Path(word)] = scratch / "inputs" / str(number) / Path(word).name
        pull(store / place, inputs[Path(word)], sha256)
    recipe = parse_recipe(Path(job.path), job.recipe)
    kept = {name: value for name, value in recipe.validation.items() if name not in _ITS_OWN}
    return replace(recipe, inputs=inputs, validation=kept, reports={}, publish={})
