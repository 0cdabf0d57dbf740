"""`lfm-convert verify FOLDER [--key FILE]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...graph.errors import ExitCode
from .console import Json, errors, output, print_json, watched
from .publish import Folder


def verify(
    folder: Folder,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Public key in PEM whose signature it must have.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare a folder of artifacts with its manifest, its provenance and its signature."""
    from ..publishing.verifying import VALID
    from ..publishing.verifying import verify as compare

    with watched() as progress:
        found = compare(folder, key=key, progress=progress)
    if as_json:
        print_json(found.to_json())
        return ExitCode.BAD_INPUT if found.faults else ExitCode.OK
    found.raise_if_any()
    with_what = ["its manifest", *(["its provenance"] if found.has_statement else [])]
    signed = f", signed with the key of {key}" if found.signature == VALID else ""
    output.print(f"{folder}: {found.n_files} files are those of {' and '.join(with_what)}{signed}", soft_wrap=True)
    for note in found.notes:
        errors.print(note, soft_wrap=True)
    return ExitCode.OK
