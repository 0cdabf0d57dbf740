"""`lfm-convert`: the commands, how errors are shown, and the exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..._version import __version__
from ..errors import ExitCode, LfmConvertError
from ..files import disk_error
from . import calibrate, compare, convert, doctor, inspect, plan, targets, validate

_DEFAULT_COMMAND = "convert"
_OWN_OPTIONS = {"--help", "-h", "--version"}


class _DefaultCommand(TyperGroup):
    """`lfm-convert MODEL --target …` means `lfm-convert convert MODEL --target …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in _OWN_OPTIONS:
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DefaultCommand,
    help="Turns an LFM2 / LFM2.5 checkpoint into artifacts for edge runtimes, runs each and compares it with the checkpoint.",
    epilog="'lfm-convert [MODEL] --target T --quant Q' is short for 'lfm-convert convert'. --debug on any command shows a traceback.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.command("convert")(convert.convert)
app.command("plan")(plan.plan)
app.command("validate")(validate.validate)
app.command("compare")(compare.compare)
app.command("calibrate")(calibrate.calibrate)
app.command("inspect")(inspect.inspect)
app.command("targets")(targets.targets)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


class _Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that temporary files are removed on the way out."""


def run(arguments: list[str] | None = None) -> NoReturn:
    """The console script: runs the command line, this process's own by default, and ends it with the exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: list[str]) -> int:
    """Runs one command line; returns the exit code of docs/exit-codes.md. Failures are said on stderr."""
    debug = "--debug" in arguments
    try:
        return _run([a for a in arguments if a != "--debug"] or ["--help"])
    except BaseException as error:
        code, sentence = _explain(error)
        if debug:
            traceback.print_exc()
        if sentence:
            print(f"lfm-convert: {sentence}", file=sys.stderr)
        return code


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _run(arguments: list[str]) -> int:
    code = int(app(arguments, prog_name="lfm-convert", standalone_mode=False) or ExitCode.OK)
    if code == ExitCode.INTERRUPTED:  # typer turns Ctrl-C into a code
        raise KeyboardInterrupt
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of a failure."""
    if isinstance(error, LfmConvertError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ExitCode.INTERRUPTED, "interrupted; nothing was published"
    if isinstance(error, _Terminated):
        return ExitCode.TERMINATED, "terminated; nothing was published"
    if hasattr(error, "format_message"):  # typer's usage errors: its copy of click has no public name
        return ExitCode.USAGE, error.format_message()
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()  # the reader has gone: there is nobody to tell
        return ExitCode.OK, ""
    if isinstance(error, OSError):
        return ExitCode.DISK, str(disk_error(error, Path(error.filename or ".")))
    if not isinstance(error, Exception):
        raise error
    return ExitCode.INTERNAL, f"internal error: {type(error).__name__}: {error} (run again with --debug and report it)"
