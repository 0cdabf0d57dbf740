"""The steps of a release, a class a kind. What a step makes is known by a key of all that decides it: with the same key
it is not made again.

    calibrate MODEL ─┐
                     ├─► convert ARTIFACT ─┐
                     │   reference MODEL ──┴─► validate ARTIFACT ─► report
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..._version import __version__
from ...graph.errors import InputError, UsageError
from ...graph.files import is_file
from ...graph.progress import SILENT
from ...targets.naming import fit_name
from ...targets.options import options_of
from ...targets.target import Artifact
from ...validate.baseline import hold_to_baseline
from ...validate.budgets import Budgets
from ...validate.kept_results import from_record, to_record, without_scores
from ...validate.lines import hold_to_lines
from ...validate.memory import run_bytes
from ...validate.outputs import write_report
from ...validate.results import Report
from .. import pipeline
from ..artifacts import record
from ..calibration import measure
from ..destination import settle
from ..manifest import Entry, load_manifest
from ..recipe.reading import IMPORTANCE
from ..writing import inputs_digest
from .parts import CLUSTER, Made, pull
from .prepared import Prepared
from .site import Site, Step
from .state import content_key, read_sealed, write_sealed

CALIBRATION = "calibration"


class Calibrate(Step):
    """How much each column of a model is used, in a file that artifacts are weighed by."""

    kind = "calibrate"

    def __init__(self, site: Site, label: str) -> None:
        super().__init__(site, label)
        preparation = site.preparation
        self.graph = preparation.graphs[label]
        self.path = preparation.out / CALIBRATION / fit_name(label, f"-{IMPORTANCE}.gguf")
        table = dict(preparation.recipe.calibration or {})
        self.texts = [preparation.recipe.seen(path) for path in table.pop("text", ())]
        self.settings: dict[str, Any] = table

    @cached_property
    def key(self) -> str:
        texts = self.site.state.hashes(_readable(self.texts))
        names = [path.name for path in self.texts]
        return content_key(self.kind, __version__, self.site.source_hashes(self.name), texts, names, self.settings)

    def is_done(self) -> bool:
        self.site.output.bring(self.path)
        made = self.site.state.made.get(self.site.place(self.path), "")
        return is_file(self.path) and made == f"{self.key} {self.sha256}"

    @property
    def sha256(self) -> str:
        return self.site.state.hashes([self.path])[0]

    def carry_out(self) -> None:
        """Raises: UsageError for a file of somebody else's in its place; as `measure`."""
        start = time.monotonic()
        found = measure(self.graph, self.texts, **self.settings, progress=self.site.progress)
        self._put(found.content, time.monotonic() - start)

    def products(self) -> Sequence[Path]:
        return [self.path]

    def take(self, made: Made) -> None:
        """Raises: UsageError for a file of somebody else's in its place."""
        with TemporaryDirectory() as folder:
            path, (name,) = Path(folder) / self.path.name, made.files
            pull(made.place / name, path, made.files[name])
            self._put(path.read_bytes(), made.seconds)

    def _put(self, content: bytes, seconds: float) -> None:
        place = self.site.place(self.path)
        if is_file(self.path) and self.path.read_bytes() != content:
            is_ours = self.site.state.made.get(place, "").endswith(f" {self.sha256}")
            if not (is_ours or self.site.overwrite):
                raise UsageError(f"{self.path}: is there, not as a release measured it; --overwrite replaces it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_report(self.path, content)
        self.site.state.finished(self.label, seconds, **{place: f"{self.key} {self.sha256}"})


def _readable(paths: Sequence[Path]) -> Sequence[Path]:
    """Raises InputError for a text that is not there."""
    for path in paths:
        if not is_file(path):
            raise InputError(f"{path}: not found")
    return paths


class Reference(Step):
    """The checkpoint's own run on the prompts, kept for all of its artifacts."""

    kind = "reference"
    on_demand = True

    def is_done(self) -> bool:
        return False  # whoever keeps it knows, and looks only when it is needed

    def carry_out(self) -> None:
        start = time.monotonic()
        chosen = {name: v for name, v in self.site.preparation.comparison.items() if name in _PROMPTS}
        pipeline.keep_reference(
            self.site.preparation.graphs[self.name],
            source_hashes=self.site.source_hashes(self.name),
            reference_cache=self.site.preparation.comparison["reference_cache"],
            **chosen,
            progress=self.site.progress,
        )
        self.site.state.finished(self.label, time.monotonic() - start)

    @cached_property
    def key(self) -> str:
        """What is run on what; of a run that is kept for other machines."""
        return content_key(self.kind, __version__, self.site.source_hashes(self.name), self.site.prompts)

    @property
    def _index(self) -> Path:
        return self.site.preparation.private / CLUSTER / "references" / f"{self.key}.json"

    def kept(self) -> Mapping[str, str] | None:
        """sha256 by path of the files of the run that is kept for other machines; None if none is, or not whole."""
        self.site.output.bring(self._index)
        found: Mapping[str, str] | None = read_sealed(self._index)
        home = self._index.parent / self.key
        is_whole = found and self.site.output.holds(
            {home / name: sha256 for name, sha256 in found.items()}, self.site.state
        )
        return found if is_whole else None

    def products(self) -> Sequence[Path]:
        folder = self.site.preparation.comparison["reference_cache"]
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def take(self, made: Made) -> None:
        write_sealed(self._index, made.files)
        self.site.state.finished(self.label, made.seconds)


# What decides which tokens are compared.
_PROMPTS = ("suite", "prompts", "text", "n_chunks")


class Convert(Step):
    """One artifact's files and its place in the manifest beside them."""

    kind = "convert"

    def __init__(self, site: Site, artifact: Prepared, calibration: Calibrate | None) -> None:
        super().__init__(site, artifact.name, () if calibration is None else (calibration,))
        self.artifact, self.calibration = artifact, calibration
        self.place = site.place(artifact.folder / artifact.plan.main_file)

    @property
    def options(self) -> dict[str, Any]:
        measured = {} if self.calibration is None else {IMPORTANCE: str(self.calibration.path)}
        return {**self.artifact.wanted.options, **measured}

    @cached_property
    def key(self) -> str:
        wanted, plan = self.artifact.wanted, self.artifact.plan
        known = options_of(wanted.target)
        files = {
            name: Path(self.options[name], known[name][1].main_file) for name in self.options if known[name][1].is_file
        }
        hashes = self.site.state.hashes(_readable(list(files.values())))
        options = {**self.options, **dict(zip(files, hashes, strict=True))}
        source = self.site.source_hashes(wanted.model.label)
        inputs = inputs_digest(plan, self.artifact.graph)
        tune = [wanted.entry.tune] if wanted.entry.tune else []
        return content_key(
            self.kind, __version__, source, plan.target, plan.quant, options, inputs, plan.main_file, *tune
        )

    def is_done(self) -> bool:
        if self.site.state.made.get(self.place) != self.key:
            return False
        try:
            return self._is_whole()
        except (InputError, OSError):
            return False

    def _is_whole(self) -> bool:
        """Whether the manifest lists the artifact, and its files and those it shares are the ones that are listed."""
        return self.site.output.holds(self.listed(), self.site.state)

    def listed(self) -> dict[Path, str]:
        """sha256 of the artifact's files and of those it shares, by path, as the manifest has them.

        Raises: InputError for an artifact that is not listed.
        """
        folder, entry = self.artifact.folder, self.entry
        if entry is None:
            raise InputError(f"{folder}: lists no {self.artifact.plan.main_file}")
        manifest = load_manifest(folder)
        shared = (manifest.shared or {}) if manifest else {}
        own = [file for file in shared.values() if file.get("target") == self.artifact.plan.target]
        return {folder / file["path"]: file["sha256"] for file in (*entry["files"], *own)}

    @property
    def entry(self) -> Entry | None:
        """What the manifest says of the artifact; None if it does not list it."""
        settle(self.artifact.folder)
        manifest = load_manifest(self.artifact.folder)
        entries = manifest.artifacts if manifest else ()
        return next((entry for entry in entries if entry["main_file"] == self.artifact.plan.main_file), None)

    def found(self) -> Artifact:
        """The artifact as it lies there. Raises: InputError."""
        return self.site.output.artifact(self.artifact.folder, self.artifact.plan.main_file)

    def carry_out(self) -> None:
        start = time.monotonic()
        self.write()
        self._finish(time.monotonic() - start)

    def products(self) -> Sequence[Path]:
        folder = self.artifact.folder
        return sorted(each for each in folder.rglob("*") if each.is_file() and not each.name.startswith("."))

    def take(self, made: Made) -> None:
        self.site.output.adopt(self, made)
        self._finish(made.seconds)

    def _finish(self, seconds: float) -> None:
        for path, sha256 in self.listed().items() if self.site.output.is_here else ():
            self.site.state.know(path, sha256)
        self.site.state.finished(self.label, seconds, **{self.place: self.key})

    def write(self, *, written: Path | None = None) -> None:
        """Writes the artifact into its folder, or moves it there from one that it was `written` into elsewhere."""
        wanted = self.artifact.wanted
        pipeline.convert(
            self.artifact.graph,
            target=wanted.target.name,
            quant=wanted.quant,
            out=self.artifact.folder,
            options=self.options,
            tune=wanted.entry.tune,
            strict=wanted.entry.strict,
            overwrite=self.site.overwrite,
            resume=True,
            renews=self.site.preparation.beside(self.artifact),
            # One whose key is known is not what it must be now, even where its manifest could not tell.
            afresh=self.place in self.site.state.made,
            source_hashes=self.site.source_hashes(wanted.model.label),
            written=written,
            jobs=self.site.jobs,
            max_memory=self.site.preparation.comparison.get("max_memory"),
            validate_after=False,
            budgets=self.artifact.budgets,
            progress=self.site.progress if written is None else SILENT,  # it was told where it was written
        )


class Validate(Step):
    """One artifact run and compared. What was measured is kept, and judged anew whenever it is asked for."""

    kind = "validate"

    def __init__(self, site: Site, conversion: Convert, reference: Reference) -> None:
        super().__init__(site, conversion.name, (conversion, reference))
        self.conversion = conversion
        self._measured: Report | None = None
        self._judged: Report | None = None

    @cached_property
    def key(self) -> str:
        """What was run, on what, against what, by which libraries."""
        artifact = self.conversion.artifact
        entry = self.conversion.entry or {}
        return content_key(
            self.kind,
            __version__,
            {file["path"]: file["sha256"] for file in entry.get("files", ())},
            [entry.get(name) for name in ("target", "quant", "class", "options", "inputs")],
            self.site.source_hashes(artifact.wanted.model.label),
            self.site.prompts,
            self.site.environment,
        )

    @property
    def _path(self) -> Path:
        return self.site.preparation.private / "results" / f"{self.key}.json"

    def is_done(self) -> bool:
        try:
            self.site.output.bring(self._path)
            self._measured = from_record(read_sealed(self._path), self.conversion.found())
        except (ValueError, KeyError, TypeError, InputError):
            return False
        return True

    def carry_out(self) -> None:
        """Raises: as `pipeline.validate`. What is wrong with the artifact is in its report."""
        start = time.monotonic()
        artifact = self.conversion.artifact
        report = pipeline.validate(
            [self.conversion.found()],
            reference=artifact.graph,
            other_reference=True,
            source_hashes=self.site.source_hashes(artifact.wanted.model.label),
            budgets=Budgets(context=artifact.budgets.context),
            progress=self.site.progress,
            **self.site.preparation.comparison,
        )
        self._accept(without_scores(report), time.monotonic() - start)

    def findings(self) -> Any:
        return None if self._measured is None else to_record(self._measured)

    def take(self, made: Made) -> None:
        self._accept(from_record(made.findings, self.conversion.found()), made.seconds)

    def _accept(self, report: Report, seconds: float) -> None:
        """Keeps what was measured, and judges it."""
        self._measured = report
        # One that did not get to its end may do so another time.
        if report.results[0].metrics is not None and report.results[0].ended is None:
            write_sealed(self._path, to_record(self._measured))
        self.site.state.finished(self.label, seconds)
        self.judged()  # so that the manifest has the verdict, whatever becomes of the run

    def judged(self) -> Report:
        """What was measured, held to the recipe's lines, budgets and baseline; the manifest gets what is new of it.

        Raises: InputError for a baseline of other prompts.
        """
        if self._judged is None:
            self._judged = self._judge()
        return self._judged

    def _judge(self) -> Report:
        assert self._measured is not None, "asked before it was measured"
        recipe, artifact = self.site.preparation.recipe, self.conversion.artifact
        (result,) = self._measured.results
        config, budgets = artifact.graph.config, artifact.budgets
        result = replace(
            result,
            budgets=budgets.check_artifact(config, result.artifact),
            run_bytes=result.run_bytes and run_bytes(config, result.artifact, budgets.context),
            context=budgets.context,
        )
        report = self._measured.with_results([result])
        report = hold_to_lines(report, recipe.lines)
        if self.site.baseline is not None:
            require = bool(recipe.validation.get("require_baseline"))
            report = hold_to_baseline(report, self.site.baseline, require=require)
        (result,) = report.results
        if result.artifact.entry.get("validation") != result.without_folders().findings():
            record(report, progress=self.site.progress)
        return report
