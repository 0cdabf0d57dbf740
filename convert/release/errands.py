"""What those need who carry out steps elsewhere, written to the output for the time of one run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ...graph.source.urls import Remote
from ...targets.options import options_of
from ..manifest import MANIFEST_FILE, load_manifest
from .jobs import Job
from .machines import own_facts
from .output import remove
from .parts import CLUSTER, push
from .prepared import PRIVATE, Prepared
from .site import Site, Step
from .steps import Calibrate, Convert, Reference, Validate

_PARTS, _INPUTS, _REFERENCES = (f"{PRIVATE}/{CLUSTER}/{name}" for name in ("parts", "inputs", "references"))
_STALE_S = 7 * 24 * 3600  # what a run left that was killed


class Errands:
    """The jobs of one run of a release."""

    def __init__(self, site: Site, *, offline: bool = False) -> None:
        self._site, self._offline = site, offline
        self._store = site.output.store
        self._run = f"{int(time.time())}-{secrets.token_hex(4)}"
        self._inputs: dict[str, tuple[str, str]] | None = None
        self._number = 0

    def job(self, step: Step) -> Job:
        """A step as data; what it reads lies in the output then. Raises: as `push`."""
        artifact = self._artifact(step)
        recipe = self._site.preparation.recipe
        self._number += 1
        return Job(
            step=step.label,
            artifact=artifact.name,
            recipe=recipe.text.content,
            path=str(recipe.path.absolute()),
            store=self._store.url,
            inputs=self._sent_inputs(),
            pulls=dict(self._pulls(step)),
            push=self._push(step),
            sources=dict(self._site.source_hashes(artifact.wanted.model.label)),
            facts=own_facts(),
            jobs=self._site.jobs,
            offline=self._offline,
        )

    def place(self, job: Job) -> Remote:
        """Where what a job made arrives."""
        return self._store / job.push

    def probe(self) -> tuple[str, str]:
        """A small file in the output, and its sha256."""
        return self._sent("probe", b"lfm-convert")

    def clear(self) -> None:
        """Removes what was written for this run, and what runs left that were killed long ago."""
        for kind in (_PARTS, _INPUTS):
            remove(self._store / f"{kind}/{self._run}")
            with suppress(Exception):  # there is no such folder, or it cannot be listed
                for found in self._store.fs.ls((self._store / kind).path, detail=False):
                    run = found.rstrip("/").rpartition("/")[2]
                    if run.partition("-")[0].isdecimal() and time.time() - int(run.partition("-")[0]) > _STALE_S:
                        remove(self._store / f"{kind}/{run}")

    def _artifact(self, step: Step) -> Prepared:
        """An artifact by which the recipe is narrowed to what a step needs."""
        if isinstance(step, Convert):
            return step.artifact
        if isinstance(step, Validate):
            return step.conversion.artifact
        own = [each for each in self._site.preparation.artifacts if each.wanted.model.label == step.name]
        return next((each for each in own if each.wanted.entry.calibrated), own[0])

    def _push(self, step: Step) -> str:
        if isinstance(step, Reference):
            return f"{_REFERENCES}/{step.key}"
        return f"{_PARTS}/{self._run}/{self._number}"

    def _pulls(self, step: Step) -> Iterator[tuple[str, tuple[str, str]]]:
        """What of the output a step reads: where it lies, from the output's folder, and here, and its sha256."""
        if isinstance(step, Convert) and isinstance(step.calibration, Calibrate):
            name = self._site.place(step.calibration.path)
            yield name, (name, step.calibration.sha256)
        if isinstance(step, Validate):
            yield from self._pulls_of(step)

    def _pulls_of(self, step: Validate) -> Iterator[tuple[str, tuple[str, str]]]:
        folder, main_file = step.conversion.artifact.folder, step.conversion.artifact.plan.main_file
        home = self._site.place(folder)
        manifest = load_manifest(folder)
        assert manifest is not None, "asked before the artifact was published"
        alone = replace(manifest, artifacts=tuple(e for e in manifest.artifacts if e["main_file"] == main_file))
        for path, file in alone.owned_files().items():
            yield f"{home}/{path}", (f"{home}/{path}", file["sha256"])
        # As it is now: others are added to it meanwhile.
        yield f"{home}/{MANIFEST_FILE}", self._sent(f"{self._number}.json", alone.as_noted().encode())
        for need in step.needs:
            if isinstance(need, Reference):
                for name, sha256 in (need.kept() or {}).items():
                    yield name, (f"{self._push(need)}/{name}", sha256)

    def _sent_inputs(self) -> dict[str, tuple[str, str]]:
        """The files that the recipe names, sent once."""
        if self._inputs is None:
            recipe = self._site.preparation.recipe
            self._inputs = {}
            for number, word in enumerate(dict.fromkeys(_files(self._site))):
                if (path := recipe.seen(word)).is_file():
                    place = f"{_INPUTS}/{self._run}/{number}/{path.name}"
                    self._inputs[str(word)] = (place, push(path, self._store / place))
        return self._inputs

    def _sent(self, name: str, data: bytes) -> tuple[str, str]:
        path = self._site.preparation.private / f".{name}.lfm-partial"
        path.parent.mkdir(parents=True, exist_ok=True)
        place = f"{_INPUTS}/{self._run}/{name}"
        try:
            path.write_bytes(data)
            return place, push(path, self._store / place)
        finally:
            path.unlink(missing_ok=True)


def _files(site: Site) -> Sequence[Path]:
    """The files that steps read, as the recipe names them."""
    recipe = site.preparation.recipe
    found = [*(recipe.calibration or {}).get("text", ())]
    found += [recipe.validation[name] for name in ("prompts", "text") if name in recipe.validation]
    for each in site.preparation.artifacts:
        known, options = options_of(each.wanted.target), each.wanted.entry.options
        found += [Path(options[name]) for name in options if known[name][1].is_file]
    return found
