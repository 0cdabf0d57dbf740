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
from ..errors import DiskError, ExitCode, LfmConvertError
from ..files import disk_error
from . import convert, doctor, inspect, plan, targets, validate

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
app.command("inspect")(inspect.inspect)
app.command("targets")(targets.targets)
app.command("doctor")(doctor.doctor)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


class _Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that temporary files are removed on the way out."""


def run(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and exits with the code of docs/exit-codes.md."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    signal.signal(signal.SIGTERM, _on_terminate)
    sys.exit(_run([a for a in arguments if a != "--debug"] or ["--help"], debug=debug))


def _on_terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        return int(app(arguments, prog_name="lfm-convert", standalone_mode=False) or ExitCode.OK)
    except LfmConvertError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was published", ExitCode.INTERRUPTED, debug=debug)
    except _Terminated:
        return _fail("terminated; nothing was published", ExitCode.TERMINATED, debug=debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: there is nobody to tell
        return ExitCode.OK
    except OSError as error:
        return _fail(str(disk_error(error, Path(error.filename or "."))), DiskError.exit_code, debug=debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors: its copy of click has no public name
            return _fail(error.format_message(), ExitCode.USAGE, debug=debug)
        return _fail(
            f"internal error: {type(error).__name__}: {error} (run again with --debug and report it)",
            ExitCode.INTERNAL,
            debug=debug,
        )


def _fail(sentence: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"lfm-convert: {sentence}", file=sys.stderr)
    return code
