"""The recipe of a project, `lfm-convert.toml`: its model, the device classes and the lines its artifacts are held to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..graph.errors import InputError, LfmConvertError
from .budgets import DeviceClass, device_classes
from .lines import Lines, recipe_lines

_TABLES = ("devices", "gates")
_EXPECTED = 'expected model = "FOLDER or hub id", or tables [devices.NAME] and [gates]'


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says; nothing where it is silent."""

    path: Path
    model: str | None = None
    devices: Mapping[str, DeviceClass] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe, once and whole. Raises: InputError, naming the file and the key that is not understood."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    model = found.get("model")
    unknown = sorted(set(found) - {"model", *_TABLES})
    if unknown or not found or not isinstance(model, str | None):
        raise InputError(f"{path}: {_EXPECTED}" + (f"; found '{unknown[0]}'" if unknown else ""))
    tables = [found.get(name, {}) for name in _TABLES]
    for name, table in zip(_TABLES, tables, strict=True):
        if not isinstance(table, dict):
            raise InputError(f"{path}: [{name}] is no table")
    try:
        return Recipe(path=path, model=model, devices=device_classes(tables[0]), lines=recipe_lines(tables[1]))
    except LfmConvertError as error:
        raise InputError(f"{path}: {error}") from None
