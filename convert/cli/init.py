"""`lfm-convert init [MODEL]`: a recipe to begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ...graph.errors import UsageError
from ...validate.outputs import check_report, write_report
from .. import pipeline
from ..bundled import NAMES
from ..recipe.reading import load_recipe
from ..release.wanted import expand
from ..source import SETTINGS_FILE, find_model
from ..starter import DEVICES, starter
from .console import Model, Offline, Revision, output, watched


def init(
    *,
    model: Model = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help=f"Only what fits it: {', '.join(DEVICES)}; repeatable. Default: every target.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The recipe to write.", show_default=True)
    ] = Path(SETTINGS_FILE),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Write a commented recipe for a checkpoint, with the targets and quants that fit your devices."""
    out = out.expanduser()
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    with watched() as progress:
        source = find_model(model, revision=revision, offline=offline)
        graph = pipeline.open_source(source, weights=False, progress=progress)
    text = starter(graph, model=_named(model, source.path, out), revision=revision, devices=device or ())
    check_report(out)
    write_report(out, text)
    wanted = expand(load_recipe(out))
    output.print(f"{out}: {', '.join(each.name for each in wanted)}; next: lfm-convert release{_recipe(out)} --dry-run")
    return 0


def _named(model: str | None, folder: Path, out: Path) -> str:
    """The checkpoint as the recipe names it: what lies on this machine is seen from there; what else was given is as it was given."""
    if model is not None and not Path(model).expanduser().exists():
        return model
    if model is None and folder.parent.name == "bundled" and folder.name in NAMES:
        return f"bundled:{folder.name}"
    return Path(os.path.relpath(folder, out.absolute().parent)).as_posix()


def _recipe(out: Path) -> str:
    return "" if out == Path(SETTINGS_FILE) else f" {out}"
