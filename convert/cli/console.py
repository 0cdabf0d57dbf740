"""What commands share: options, progress on stderr, JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ..progress import Progress
from ..units import format_size

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Runtime to write for; 'lfm-convert targets' lists them.")]
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


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


class _Amount(ProgressColumn):
    """`1.20 GB of 2.42 GB, 310 MB/s`, or `12 of 42 prompts`."""

    def render(self, task: Task) -> Text:
        done, total, unit = int(task.completed), int(task.total or 0), task.fields["unit"]
        if unit != "bytes":
            return Text(f"{done} of {total} {unit}")
        speed = f", {format_size(int(task.speed))}/s" if task.speed else ""
        return Text(f"{format_size(done)} of {format_size(total)}{speed}")


@contextmanager
def watched() -> Iterator[Progress]:
    """Bars with amounts and rates on a terminal; notes only, without one."""
    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), _Amount(), TimeRemainingColumn(),
        console=errors, disable=not errors.is_terminal, transient=True,
    )  # fmt: skip
    with bar:

        def start(label: str, total: int, unit: str) -> None:
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(label, total=total, unit=unit)

        def advance(amount: int) -> None:
            bar.advance(bar.task_ids[-1], amount)

        yield Progress(start, advance, lambda sentence: errors.print(sentence, style="dim", soft_wrap=True))
