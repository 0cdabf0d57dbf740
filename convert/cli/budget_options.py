"""Options of the budgets that `plan`, `convert` and `validate` hold artifacts to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...validate.budgets import Budgets, load_devices
from ..errors import UsageError
from ..source import SETTINGS_FILE
from ..units import parse_size

MaxSize = Annotated[
    str | None, typer.Option("--max-size", help="Largest artifact allowed, like 4.8GB.", show_default=False)
]
MaxFileSize = Annotated[
    str | None, typer.Option("--max-file-size", help="Largest single file allowed, like 2GB.", show_default=False)
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
Recipe = Annotated[Path, typer.Option("--recipe", help="TOML file with a table [devices.NAME] for each class.")]


def budget_options(
    *,
    max_size: MaxSize = None,
    max_file_size: MaxFileSize = None,
    device: Devices = None,
    recipe: Recipe = Path(SETTINGS_FILE),
) -> Budgets:
    """The budgets of a run."""
    known = load_devices(recipe) if device else {}
    unknown = [name for name in device or () if name not in known]
    if unknown:
        names = ", ".join(known) or "none"
        raise UsageError(f"{recipe}: has no device class '{unknown[0]}': it has {names}")
    return Budgets(
        max_size=parse_size(max_size) if max_size else None,
        max_file_size=parse_size(max_file_size) if max_file_size else None,
        devices=tuple(known[name] for name in device or ()),
    )
