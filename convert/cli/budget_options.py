"""Options of the budgets that `plan`, `convert` and `validate` hold artifacts to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...graph.errors import UsageError
from ...graph.units import parse_size
from ...validate.budgets import Budgets
from ..recipe.reading import Recipe, load_recipe
from ..source import SETTINGS_FILE

MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="Largest artifact allowed, like 4.8GB.", show_default=False),
]
MaxFileSize = Annotated[
    str | None,
    typer.Option("--max-file-size", metavar="SIZE", help="Largest single file allowed, like 2GB.", show_default=False),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Hold artifacts to the limits of this device class of the recipe; repeatable.",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Recipe | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        parser=lambda name: load_recipe(Path(name)),  # once, though several groups ask for it: it may be a pipe
        help=f"TOML file with tables [devices.NAME] and [gates]; default: {SETTINGS_FILE}.",
        show_default=False,
    ),
]


def budget_options(
    *,
    max_size: MaxSize = None,
    max_file_size: MaxFileSize = None,
    device: Devices = None,
    recipe: RecipeFile = None,
) -> Budgets:
    """The budgets of a run. Raises: UsageError for a recipe of which nothing is asked for, or a class it has not."""
    if recipe is not None and not device and not recipe.lines:
        raise UsageError(f"--recipe {recipe.path}: give --device NAME, a class of it to hold artifacts to")
    if recipe is None and device:
        recipe = load_recipe(Path(SETTINGS_FILE))
    known = recipe.devices if recipe else {}
    unknown = [name for name in device or () if name not in known]
    if unknown:
        names = ", ".join(known) or "none"
        raise UsageError(
            f"{recipe.path if recipe else SETTINGS_FILE}: has no device class '{unknown[0]}': it has {names}"
        )
    return Budgets(
        max_size=None if max_size is None else parse_size(max_size),
        max_file_size=None if max_file_size is None else parse_size(max_file_size),
        devices=tuple(known[name] for name in device or ()),
    )
