"""`lfm-convert sign FOLDER --key FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json, output, print_json, watched
from .publish import Folder


def sign(
    folder: Folder,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Elliptic private key in PEM; without it nothing is signed.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run of this wrote.")] = False,
    as_json: Json = False,
) -> int:
    """Write provenance, a bill of materials and a signature beside artifacts."""
    from ..publishing.proofs import sign as write

    with watched() as progress:
        written = write(folder, key=key, overwrite=overwrite, progress=progress)
    if as_json:
        print_json({"written": [path.name for path in written]})
        return 0
    for path in written:
        output.print(path, soft_wrap=True)
    return 0
