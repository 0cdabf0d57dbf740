"""A recipe held to what is here, before any work: its models are opened, its artifacts planned, its budgets and places
checked. What cannot be carried out is refused with the line that asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...graph.errors import BudgetError, DiskError, LfmConvertError, UsageError
from ...graph.graph import WeightGraph
from ...graph.progress import SILENT, Progress
from ...graph.source.assets import LICENSES
from ...quantize.allotment.wanted import CODES
from ...targets.lossy import planned
from ...targets.naming import fit_name
from ...targets.plans import Plan
from ...validate.budgets import BudgetCheck, Budgets
from ..manifest import MANIFEST_FILE, own_files
from ..pipeline import check_comparison, default_folder, open_source
from ..publishing.names import CARD_FILE
from ..recipe.places import KeyPath
from ..recipe.reading import ModelEntry, Recipe
from ..source import find_model
from ..tuning import CodeTuning
from .output import Folder, Output
from .wanted import Wanted

DEFAULT_OUT = "release"
# What a release keeps for its next run, below its output folder.
PRIVATE = ".lfm-release"
_MODEL, _OUT = "{model}", "{out}"
# The keys that set a limit, by the name of its check.
_LIMITS = {"size": "max_size", "file": "max_file_size", "memory": "max_memory"}
# Keys of [validation] that the comparison calls otherwise.
_CALLED = {"chunks": "n_chunks", "time_limit": "time_limit_s"}
_HELD_TO = ("baseline", "require_baseline")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One artifact, planned. `folder` is where it will lie, `plan` what it will be; what calibration adds to a file's
    header is not known yet.
    """

    wanted: Wanted
    graph: WeightGraph = field(repr=False)
    plan: Plan = field(repr=False)
    folder: Path
    budgets: Budgets

    @property
    def name(self) -> str:
        return self.wanted.name


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A recipe that can be carried out. `comparison` is what `pipeline.validate` takes, `n_tokens` what each model's
    prompts have, `output` where all of it will lie.
    """

    recipe: Recipe
    output: Output
    graphs: Mapping[str, WeightGraph]
    artifacts: tuple[Prepared, ...]
    comparison: Mapping[str, Any]
    n_tokens: Mapping[str, int]
    reports: Mapping[str, Path]

    @property
    def out(self) -> Path:
        """The output folder, or its mirror."""
        return self.output.folder

    @property
    def private(self) -> Path:
        return self.out / PRIVATE

    @property
    def small_files(self) -> list[Path]:
        """Files of the output that say something of artifacts, whether they are there or not."""
        folders = dict.fromkeys(each.folder for each in self.artifacts)
        reports = [path for path in self.reports.values() if path.is_relative_to(self.out)]
        return [*reports, *(folder / name for folder in folders for name in (MANIFEST_FILE, CARD_FILE, *LICENSES))]

    @property
    def threads(self) -> int:
        """Threads of each runtime."""
        return self.comparison.get("threads") or os.cpu_count() or 1

    def beside(self, artifact: Prepared) -> frozenset[str]:
        """Main files of the artifacts that this release writes into the same folder."""
        return frozenset(each.plan.main_file for each in self.artifacts if each.folder == artifact.folder)


def prepare(
    recipe: Recipe,
    wanted: Sequence[Wanted],
    *,
    output: Output | None = None,
    reports: Mapping[str, Path] | None = None,
    weights: bool = True,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Preparation:
    """Opens, plans and checks everything; with `weights=False` a model's config will do, and nothing is written. `reports`
    are written beside, or in place of, the recipe's.

    Raises: what is wrong, with file, line and key where the recipe is what asks for it.
    """
    output = output if output is not None else Folder(recipe.seen(Path(recipe.out or DEFAULT_OUT)))
    out = output.folder
    comparison = _comparison(recipe, out)
    _refuse_unwritable(recipe, out, comparison["reference_cache"])
    _refuse_missing_texts(recipe, wanted)
    models = {each.model.label: each.model for each in wanted}
    graphs = {label: _opened(recipe, model, weights, offline, progress) for label, model in models.items()}
    artifacts = tuple(_planned(recipe, each, graphs[each.model.label], out) for each in wanted)
    _refuse_same_place(recipe, artifacts)
    _refuse_idle_devices(recipe, artifacts)
    _refuse_over_budget(recipe, artifacts)
    n_tokens = {}
    for label, graph in graphs.items():
        told = next((name for name in ("prompts", "text", "max_memory") if name in recipe.validation), None)
        with _blamed(recipe, ("validation", told) if told else models[label].key):
            n_tokens[label] = check_comparison(graph, comparison)
    reports = {**{kind: _placed(recipe, path, out) for kind, path in recipe.reports.items()}, **(reports or {})}
    _refuse_reports(recipe, reports, _owners(recipe, comparison, graphs, artifacts))
    return Preparation(
        recipe=recipe,
        output=output,
        graphs=graphs,
        artifacts=artifacts,
        comparison=comparison,
        n_tokens=n_tokens,
        reports=reports,
    )


@contextmanager
def _blamed(recipe: Recipe, key: KeyPath) -> Iterator[None]:
    """What fails in here comes from this key."""
    try:
        yield
    except LfmConvertError as error:
        raise recipe.text.blame(key, error) from None


def _comparison(recipe: Recipe, out: Path) -> dict[str, Any]:
    """`[validation]` as `pipeline.validate` takes it."""
    found = {_CALLED.get(name, name): value for name, value in recipe.validation.items() if name not in _HELD_TO}
    files: dict[str, Any] = {name: recipe.seen(found[name]) for name in ("prompts", "text") if name in found}
    cache = found.get("reference_cache")
    kept = out / PRIVATE / "references" if cache is None else recipe.seen(cache)
    return {"suite": "standard", **found, **files, "reference_cache": kept}


def _refuse_unwritable(recipe: Recipe, out: Path, cache: Path) -> None:
    """Raises DiskError for a folder that nothing can be written into."""
    places: tuple[tuple[KeyPath, Path], ...] = (("out",), out), (("validation", "reference_cache"), cache)
    for key, folder in places:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            why = "is read-only" if existing.is_dir() else "is a file"
            recipe.text.refuse(key, f"{key[-1]}: {existing} {why}: expected a folder that can be written to", DiskError)


def _opened(recipe: Recipe, model: ModelEntry, weights: bool, offline: bool, progress: Progress) -> WeightGraph:
    token = os.environ.get(model.token) if model.token else None
    if model.token and not token:
        recipe.text.refuse(
            (*model.key, "token"),
            f"token: the environment has no {model.token}, which holds the hub's token",
            UsageError,
        )
    seen = recipe.seen(Path(model.model))
    with _blamed(recipe, model.key):
        source = find_model(
            str(seen) if seen.exists() else model.model,
            revision=model.revision,
            offline=offline,
            token=token,
            progress=progress,
        )
    with _blamed(recipe, (*model.key, "adapters") if model.adapters else model.key):
        graph = open_source(source, weights=weights, adapters=recipe.adapting(model), progress=progress)
        return replace(graph, name=model.name) if model.name else graph


def _planned(recipe: Recipe, wanted: Wanted, graph: WeightGraph, out: Path) -> Prepared:
    entry = wanted.entry
    with _blamed(recipe, entry.key):
        plan = planned(wanted.target, graph, wanted.quant)
        if CODES in entry.tune:
            max_memory = recipe.validation.get("max_memory")
            plan = CodeTuning.of(wanted.target, graph, jobs=os.cpu_count() or 1, max_memory=max_memory).announce(plan)
        if entry.strict:
            plan.refuse_fallbacks()
    folder = Path(default_folder(graph, wanted.target))
    if entry.folder is not None:
        folder = Path(entry.folder.replace(_MODEL, fit_name(graph.name, "")))
        if folder.is_absolute() or ".." in folder.parts or PRIVATE in folder.parts:
            recipe.text.refuse(
                (*entry.key, "folder"), f"artifacts.folder is '{entry.folder}': expected a folder below `out`"
            )
    budgets = Budgets(
        max_size=entry.max_size,
        max_file_size=entry.max_file_size,
        devices=tuple(recipe.devices[name] for name in entry.devices),
    )
    budgets = replace(budgets, context=entry.options.get("context", budgets.context))
    return Prepared(wanted=wanted, graph=graph, plan=plan, folder=out / folder, budgets=budgets)


def _refuse_same_place(recipe: Recipe, artifacts: Sequence[Prepared]) -> None:
    """Raises UsageError for two artifacts of which one would replace a file of the other."""
    owners: dict[str, Prepared] = {}
    for each in artifacts:
        for file in each.plan.files:
            path = os.path.realpath(each.folder / file.path)
            owner = owners.setdefault(path, each)
            if owner is not each:
                recipe.text.refuse(
                    each.wanted.entry.key,
                    f"[[artifacts]]: {each.name} and {owner.name} would both be {each.folder / file.path}: give one of "
                    "them another `folder`",
                    UsageError,
                )


def _refuse_idle_devices(recipe: Recipe, artifacts: Sequence[Prepared]) -> None:
    """Raises UsageError for a class that is named for artifacts of which it is meant for none."""
    for entry in dict.fromkeys(each.wanted.entry.key for each in artifacts):
        own = [each for each in artifacts if each.wanted.entry.key == entry]
        for device in own[0].budgets.devices:
            if not any(device.takes(each.wanted.target.name, each.wanted.quant) for each in own):
                recipe.text.refuse(
                    (*entry, "devices"),
                    f"artifacts.devices: {device.name} is meant for none of {', '.join(each.name for each in own)}, by "
                    f"the `targets` and `quants` of [devices.{device.name}]",
                    UsageError,
                )


def _refuse_over_budget(recipe: Recipe, artifacts: Sequence[Prepared]) -> None:
    """Raises BudgetError for the first plan that is over a limit, with how many others are."""
    over = [
        (each, check)
        for each in artifacts
        for check in each.budgets.check_plan(each.graph.config, each.plan)
        if not check.passed
    ]
    if over:
        each, check = over[0]
        others = len({other.name for other, _ in over} - {each.name})
        more = f"; {others} more {'is' if others == 1 else 'are'} over a budget" if others else ""
        key = _key_of(each, check)
        recipe.text.refuse(key, f"{_LIMITS[check.name]}: {each.name}: {check.sentence}{more}", BudgetError)


def _key_of(each: Prepared, check: BudgetCheck) -> KeyPath:
    """The key that sets the limit of a check."""
    table = ("devices", check.device) if check.device else each.wanted.entry.key
    return (*table, _LIMITS[check.name])


def _placed(recipe: Recipe, path: Path, out: Path) -> Path:
    """Where a report goes: a path that begins with {out} lies in the output folder, wherever that is."""
    return out.joinpath(*path.parts[1:]) if path.parts[0] == _OUT else recipe.seen(path)


def _refuse_missing_texts(recipe: Recipe, wanted: Sequence[Wanted]) -> None:
    """Raises InputError for a text that calibration would read and that is not there."""
    needed = any(each.entry.calibrated for each in wanted)
    for path in (recipe.calibration or {}).get("text", ()) if needed else ():
        if not recipe.seen(path).is_file():
            recipe.text.refuse(("calibration", "text"), f"calibration.text: {recipe.seen(path)}: not found")


def _refuse_reports(recipe: Recipe, reports: Mapping[str, Path], owners: Iterable[tuple[Path, str]]) -> None:
    """Raises UsageError for a report that would replace what the run reads or makes, or another report."""
    taken = {os.path.realpath(path): owner for path, owner in owners}
    for kind, path in reports.items():
        own = f"the {kind} report"
        owner = taken.setdefault(os.path.realpath(path), own)
        if owner != own:
            recipe.text.refuse(("reports", kind), f"reports.{kind}: {path} is {owner}", UsageError)
        if path.is_dir():
            recipe.text.refuse(("reports", kind), f"reports.{kind}: {path} is a folder: expected a file")


def _owners(
    recipe: Recipe, comparison: Mapping[str, Any], graphs: Mapping[str, WeightGraph], artifacts: Sequence[Prepared]
) -> Iterator[tuple[Path, str]]:
    """Files that no report may replace, and what they are."""
    yield recipe.path, "the recipe"
    texts = [recipe.seen(path) for path in (recipe.calibration or {}).get("text", ())]
    for path in (*texts, *(comparison[name] for name in ("prompts", "text") if name in comparison)):
        yield path, "a text that is read"
    for graph in graphs.values():
        yield from ((path, "the checkpoint's") for path in own_files(graph))
    for each in artifacts:
        yield each.folder / MANIFEST_FILE, f"the manifest of {each.name}"
        yield from ((each.folder / file.path, f"a file of {each.name}") for file in each.plan.files)
