"""What commands share: options, progress on stderr, JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from ..pipeline import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Runtime to write for; 'lfm-convert targets' lists them.")]
Refine = Annotated[
    bool, typer.Option("--refine", help="Search for a lower error in the same format and size; takes longer.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub; use its local cache.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="Checkpoint folder, hub id, or bundled:moe / bundled:dense.", show_default=False
    ),
]

errors = Console(stderr=True, highlight=False)
# Tables in a log are as wide as they need; rich would cut them at 80 columns.
output = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def given(**options: Any) -> dict[str, Any]:
    """The target options that were set on the command line."""
    return {name: value for name, value in options.items() if value not in (None, False, ())}


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


@contextmanager
def watched() -> Iterator[Progress]:
    """Progress with bytes and bytes/s on a terminal; notes only, without one."""
    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=errors, disable=not errors.is_terminal, transient=True,
    )  # fmt: skip
    with bar:

        def start(label: str, total_bytes: int) -> None:
            bar.add_task(label, total=total_bytes)

        def advance(n_bytes: int) -> None:
            bar.advance(bar.task_ids[-1], n_bytes)

        yield Progress(start, advance, lambda sentence: errors.print(sentence, style="dim", soft_wrap=True))
