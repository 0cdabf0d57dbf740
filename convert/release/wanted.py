"""What a recipe asks for, artifact by artifact, from its text alone: no checkpoint is looked for."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...graph.errors import UsageError
from ...targets.options import options_of
from ...targets.target import Target, get_target
from ..pipeline import quants_of
from ..recipe.reading import IMPORTANCE, ArtifactsEntry, ModelEntry, Recipe

_SHOWN = 6  # names of artifacts in a sentence
# What a pattern would read as a wildcard.
_MAGIC = "[*?"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One artifact that a recipe asks for. `target` is configured by its `options`, but for what calibration measures."""

    model: ModelEntry
    entry: ArtifactsEntry
    target: Target = field(repr=False)
    options: Mapping[str, Any]
    quant: str

    @property
    def name(self) -> str:
        """`moe/gguf/Q4_0`: model, target, quant, and the label if its table has one."""
        parts = (self.model.label, self.target.name, self.quant, self.entry.label)
        return "/".join(part for part in parts if part)


def expand(recipe: Recipe) -> tuple[Wanted, ...]:
    """Every artifact of a recipe, in its order.

    Raises: UsageError for a recipe that asks for none, or for two of one name, with the line of the second.
    """
    if not recipe.artifacts:
        recipe.text.refuse((), "asks for no artifacts: expected [[artifacts]] with a target", UsageError)
    if not recipe.models:
        recipe.text.refuse((), 'names no model: expected model = "FOLDER or hub id", or [models.NAME]', UsageError)
    found: dict[str, Wanted] = {}
    for entry in recipe.artifacts:
        options = _options(recipe, entry)
        target = get_target(entry.target).with_options(options)
        for label in entry.models or tuple(recipe.models):
            for quant in quants_of(target, entry.quants, entry.tune, max_bytes=entry.max_size):
                wanted = Wanted(model=recipe.models[label], entry=entry, target=target, options=options, quant=quant)
                before = found.setdefault(wanted.name, wanted)
                if before is not wanted:
                    recipe.text.refuse(
                        entry.key,
                        f"[[artifacts]]: a second artifact is called {wanted.name}, after that of "
                        f"{recipe.text.where(before.entry.key)}: give this table a `label` and a `folder`",
                        UsageError,
                    )
    return tuple(found.values())


def _options(recipe: Recipe, entry: ArtifactsEntry) -> dict[str, Any]:
    """The options of a table; a file is seen from the recipe's folder."""
    known = options_of(get_target(entry.target))
    if entry.calibrated and IMPORTANCE in entry.options:
        recipe.text.refuse(
            (*entry.key, "calibrated"), f"artifacts.calibrated: options.{IMPORTANCE} is given, too: give one of them"
        )
    files = {name: str(recipe.seen(Path(entry.options[name]))) for name in entry.options if known[name][1].is_file}
    return {**entry.options, **files}


def select(artifacts: Sequence[Wanted], patterns: Sequence[str]) -> tuple[Wanted, ...]:
    """Those whose name, or one part of it, is matched by a pattern; all of them without a pattern.

    Raises: UsageError for a pattern that matches none.
    """
    for pattern in patterns:
        if not any(_matches(each.name, pattern) for each in artifacts):
            names = ", ".join(each.name for each in artifacts[:_SHOWN])
            more = f" and {len(artifacts) - _SHOWN} more" if len(artifacts) > _SHOWN else ""
            raise UsageError(f"--only {pattern}: matches none of {names}{more}")
    return tuple(each for each in artifacts if not patterns or any(_matches(each.name, p) for p in patterns))


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, *name.split("/")))


def matrix(artifacts: Sequence[Wanted]) -> dict[str, Any]:
    """A matrix of GitHub Actions: a job an artifact, and the pattern by which `--only` makes just that one.

    Source: docs.github.com, "Running variations of jobs in a workflow", `matrix.include`.
    """
    return {
        "include": [
            {
                "only": "".join(f"[{mark}]" if mark in _MAGIC else mark for mark in each.name),
                "model": each.model.label,
                "target": each.target.name,
                "quant": each.quant,
                "extra": each.target.extra,
            }
            for each in artifacts
        ]
    }
