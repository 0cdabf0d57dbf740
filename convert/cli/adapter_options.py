"""Options of what opens a model: the adapters that are merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...graph.adapters.adapter import MERGE_DTYPES, Adapting, adapting

Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        metavar="FOLDER",
        help="LoRA adapter of PEFT to merge into the model; repeatable, merged in their order.",
        show_default=False,
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--adapter-weight",
        metavar="NUMBER",
        help="What an adapter's part is multiplied by; one for each --adapter, in their order. Default: 1.",
        show_default=False,
    ),
]
MergeDtype = Annotated[
    str | None,
    typer.Option(
        "--merge-dtype",
        metavar="NAME",
        help=f"Keep merged weights in {' or '.join(MERGE_DTYPES)}; default: each in its base's type, as PEFT does.",
        show_default=False,
    ),
]


def adapter_options(
    *, adapter: Folders = None, adapter_weight: Weights = None, merge_dtype: MergeDtype = None
) -> Adapting:
    """The adapters that a command line names. Raises: as `adapting`."""
    folders = [folder.expanduser() for folder in adapter or ()]
    return adapting(folders, adapter_weight or (), merge_dtype)
