"""`lfm-convert card FOLDER --to ORG/NAME-GGUF`."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import output
from .publish import BaseModel, Folder, Only, To


def card(
    folder: Folder,
    to: To,
    only: Only = None,
    base_model: BaseModel = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is not ours.")] = False,
) -> int:
    """Write the model card of a folder, README.md, which publish would make, to be read or changed before."""
    from ..publishing.write_card import write_card

    path = write_card(folder, to, only=tuple(only or ()), base_model=base_model, overwrite=overwrite)
    output.print(path, soft_wrap=True)
    return 0
