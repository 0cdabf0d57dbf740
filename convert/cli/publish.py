"""`lfm-convert publish FOLDER --to ORG/NAME-GGUF`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...graph.errors import UsageError
from .console import Json, output, print_json, watched

if TYPE_CHECKING:
    from ..publishing.publish import Planned, Published

Folder = Annotated[Path, typer.Argument(help="Folder of artifacts with their manifest.", show_default=False)]
To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="ORG/NAME",
        help="Repository; {model}, {TARGET}, {target}, {quant} in it stand for what an artifact is.",
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="NAME", help="Only this target, quant or main file; repeatable.", show_default=False
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="ORG/NAME",
        help="The checkpoint's own repository, for the card; default: where it was fetched from.",
        show_default=False,
    ),
]


def publish(
    folder: Folder,
    to: To,
    only: Only = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Branch to commit to; default: main.", show_default=False),
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request in place of a commit to a branch.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Title of the commit or pull request.", show_default=False)
    ] = None,
    base_model: BaseModel = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", metavar="FILE", help="Send this report of validate along; repeatable.", show_default=False
        ),
    ] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(
            "--sign-key",
            metavar="FILE",
            help="Add provenance and a signature with this private key.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files there that lfm-convert did not publish.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; ask no hub.")] = False,
    as_json: Json = False,
) -> int:
    """Send validated artifacts with card and manifest to a model hub, and read back what arrived."""
    from ..publishing.publish import Place, plan_publication
    from ..publishing.publish import publish as send

    if revision is not None and pull_request:
        raise UsageError("--pull-request is always against main: leave --revision out")
    what: dict[str, Any] = {
        "only": tuple(only or ()),
        "base_model": base_model,
        "reports": tuple(report or ()),
        "sign_key": sign_key,
    }
    place = Place(branch=revision, in_pull_request=pull_request, private=private)
    found: Sequence[Planned | Published]
    with watched() as progress:
        if dry_run:
            found = plan_publication(folder, to, **what, progress=progress)
        else:
            found = send(folder, to, **what, place=place, message=message, overwrite=overwrite, progress=progress)
    if as_json:
        print_json({"repositories": [each.to_json() for each in found]})
        return 0
    for each in found:
        for line in each.lines():
            output.print(line, soft_wrap=True)
    return 0
