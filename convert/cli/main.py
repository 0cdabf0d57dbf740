"""`lfm-convert`: the commands, how errors are shown, and the exit code."""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from ..._version import __version__
from ...graph.errors import ExitCode, UsageError
from ...graph.families import FAMILIES
from ...graph.streams import keep_stderr, open_standard_streams, silence
from ...graph.text import plain
from ..failures import explained, with_notes
from ..stopping import Stopped, as_heard, forget_signals, on_signal
from . import (
    calibrate,
    card,
    compare,
    convert,
    doctor,
    init,
    inspect,
    lora,
    plan,
    publish,
    release,
    sign,
    targets,
    validate,
    verify,
)
from .console import accept_any_encoding, set_volume, silence_libraries
from .grammar import Command, DefaultCommand

app = typer.Typer(
    cls=DefaultCommand,
    help="Turns one checkpoint into artifacts for edge runtimes, runs each and compares it with the checkpoint. "
    f"Families: {', '.join(family.name for family in FAMILIES)}.",
    epilog="'lfm-convert [MODEL] --target T --quant Q' is short for 'lfm-convert convert'. On any command --quiet leaves out notes and progress, --verbose tells what each step took, and --debug shows a traceback.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


for _command in (
    convert.convert,
    plan.plan,
    validate.validate,
    release.release,
    init.init,
    compare.compare,
    calibrate.calibrate,
    lora.lora,
    card.card,
    sign.sign,
    publish.publish,
    verify.verify,
    inspect.inspect,
    targets.targets,
    doctor.doctor,
):
    app.command(cls=Command)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


# Flags of every command, wherever they stand.
ANYWHERE = ("--debug", "--quiet", "--verbose")
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def run(arguments: list[str] | None = None) -> NoReturn:
    """The console script: runs the command line, this process's own by default, and ends it with the exit code."""
    open_standard_streams()
    keep_stderr()
    for number in _WORDS:
        signal.signal(number, on_signal)
    accept_any_encoding()
    given = sys.argv[1:] if arguments is None else arguments
    if not {"--debug", "--verbose"} & set(given):
        silence_libraries()
    gc.freeze()  # what was imported stays: looking through it for garbage takes a twelfth of a short conversion
    try:
        code = main(given)
        for number in _WORDS:  # what was done is told: a signal now has nothing left to stop
            signal.signal(number, signal.SIG_IGN)
    except Stopped as stopped:  # while that was told, or a second one
        code = stopped.code
    sys.exit(code)


def main(arguments: list[str]) -> int:
    """Runs one command line; returns the exit code of docs/exit-codes.md. Failures are said on stderr."""
    debug, quiet, verbose = (flag in arguments for flag in ANYWHERE)
    set_volume(quiet=quiet, verbose=verbose or debug)
    forget_signals()
    try:
        if quiet and verbose:
            raise UsageError("give --quiet or --verbose, not both")
        return _run([a for a in arguments if a not in ANYWHERE] or ["--help"])
    except BaseException as error:
        code, sentence = _explain(as_heard(error))
        if debug:
            sentence = f"{traceback.format_exc()}lfm-convert: {plain(sentence)}"
        elif sentence:
            sentence = f"lfm-convert: {plain(sentence)}"
        _tell(sentence)
        return code


def _tell(sentence: str) -> None:
    """On stderr. Where that takes nothing, the exit code still says what there is to say."""
    try:
        print(sentence, end="\n" if sentence else "", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def _run(arguments: list[str]) -> int:
    code = int(app(arguments, prog_name="lfm-convert", standalone_mode=False) or ExitCode.OK)
    if code == ExitCode.INTERRUPTED:  # typer turns Ctrl-C into a code
        raise KeyboardInterrupt
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of a failure, with what was published before it."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ExitCode.INTERRUPTED, with_notes(_WORDS[signal.SIGINT], error)
    if isinstance(error, Stopped):
        return error.code, with_notes(_WORDS[signal.Signals(error.number)], error)
    if hasattr(error, "format_message"):  # typer's usage errors: its copy of click has no public name
        return ExitCode.USAGE, error.format_message()
    if isinstance(error, BrokenPipeError):
        silence(sys.stdout)  # the reader has gone: there is nobody to tell
        return ExitCode.OK, ""
    if not isinstance(error, Exception):
        raise error
    return explained(error)
