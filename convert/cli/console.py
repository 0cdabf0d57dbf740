"""What commands share: options, progress on stderr, JSON on stdout, and consoles for which text is only text."""

from __future__ import annotations

import codecs
import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ...graph.progress import Progress
from ...graph.streams import held_back, silence, unwritable_output, write_out
from ...graph.text import plain
from ...graph.units import format_size
from ...targets.target import get_target, target_names
from ..bundled import CHOICES

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def _targets(incomplete: str) -> list[str]:
    """For a shell's completion."""
    return [name for name in target_names() if name.startswith(incomplete)]


def _quants(ctx: typer.Context, incomplete: str) -> list[str]:
    """For a shell's completion: the quants of the target that the line names, or of all of them."""
    named = ctx.params.get("target")
    targets = [named] if named in target_names() else target_names()
    names = dict.fromkeys(policy.name for target in targets for policy in get_target(target).policies)
    return [name for name in names if name.startswith(incomplete)]


Target = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        autocompletion=_targets,
        help="Runtime to write for; 'lfm-convert targets' lists them.",
    ),
]
Quant = Annotated[
    list[str] | None,
    typer.Option(
        "--quant",
        "-q",
        metavar="NAMES",
        autocompletion=_quants,
        help="Quants, repeatable or comma-separated, or all; default: the target's.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub; use its local cache.")]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help=f"Checkpoint or MLX folder, GGUF file, hub id, or {CHOICES}.", show_default=False
    ),
]

# How our own typography is spelled where an encoding lacks it. Other marks become escapes.
_SPELLED = {"–": "-", "—": "-", "−": "-", "…": "...", "±": "+/-", "×": "x"}
_SPELLING = "lfm-convert-spelling"


class _PlainConsole(Console):
    """A console on which every text, cells of tables too, is printed as it is: no markup, no emoji codes, no controls."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Notes on stderr are not the work: where they cannot be written, it goes on without.

        Raises: DiskError if standard output cannot be written.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.quiet = True
            if not self.stderr:
                raise unwritable_output(error) from error

    def on_broken_pipe(self) -> None:
        """The reader has gone: what is left to say is dropped, and the exit code is that of the work."""
        self.quiet = True
        silence(self.file)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)


errors = _PlainConsole(stderr=True)
_is_verbose = False
# Tables in a log are as wide as they need; rich would cut them at 80 columns.
output = _PlainConsole(width=None if sys.stdout and sys.stdout.isatty() else 200)


def set_volume(*, quiet: bool, verbose: bool) -> None:
    """Whether notes and progress are told, and whether the time of each step and what libraries print is told, too."""
    global _is_verbose
    errors.quiet, _is_verbose = quiet, verbose


def silence_libraries() -> None:
    """Leaves out what libraries warn of, for the process's life, unless its user asked Python for it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def accept_any_encoding() -> None:
    """Has the standard streams spell what their encoding lacks, such as an en dash in ASCII, instead of failing."""
    codecs.register_error(_SPELLING, _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELLING)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    marks = error.object[error.start : error.end]
    return "".join(_SPELLED.get(m) or m.encode("ascii", "backslashreplace").decode() for m in marks), error.end


def print_json(value: Any) -> None:
    """One JSON document on stdout: in UTF-8, or with escapes where stdout has another encoding."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    write_out(json.dumps(value, indent=2, ensure_ascii=encoding != "utf-8") + "\n")


class _Amount(ProgressColumn):
    """`1.20 GB of 2.42 GB, 310 MB/s`, or `12 of 42 prompts`."""

    def render(self, task: Task) -> Text:
        done, total, unit = int(task.completed), int(task.total or 0), task.fields["unit"]
        if not total:
            return Text()
        if unit != "bytes":
            return Text(f"{done} of {total} {unit}")
        speed = f", {format_size(int(task.speed))}/s" if task.speed else ""
        return Text(f"{format_size(done)} of {format_size(total)}{speed}")


@contextmanager
def watched() -> Iterator[Progress]:
    """Bars with amounts, rates and times on a terminal, of a step whose total is not known one that moves; notes only,
    without a terminal.
    """
    bar = Bar(
        TextColumn("{task.description}", markup=False), BarColumn(), _Amount(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=errors, disable=not errors.is_terminal, transient=True,
    )  # fmt: skip
    step, since = "", 0.0

    def end() -> None:
        if step and _is_verbose:
            errors.print(f"{step}: {time.monotonic() - since:.1f} s", style="dim", soft_wrap=True)

    with nullcontext() if _is_verbose else held_back(), bar:

        def start(label: str, total: int, unit: str) -> None:
            nonlocal step, since
            end()
            step, since = label, time.monotonic()
            for task in bar.task_ids:
                bar.remove_task(task)
            bar.add_task(plain(label), total=total or None, unit=unit)

        def advance(amount: int) -> None:
            bar.advance(bar.task_ids[-1], amount)

        yield Progress(start, advance, lambda sentence: errors.print(sentence, style="dim", soft_wrap=True))
        end()
