"""A failure as its exit code and one sentence, whoever meets it."""

from __future__ import annotations

from pathlib import Path

from ..graph.errors import ExitCode, LfmConvertError
from ..graph.files import disk_error


def explained(error: Exception) -> tuple[ExitCode, str]:
    """The exit code of docs/exit-codes.md, and what there is to say with its notes; of a fault of ours, how to report it."""
    code, sentence = _named(error)
    return code, with_notes(sentence, error)


def with_notes(sentence: str, error: BaseException) -> str:
    """A sentence, and what was noted of a failure on its way, such as what was published before; none of an empty one."""
    return "; ".join([sentence, *getattr(error, "__notes__", ())]) if sentence else ""


def _named(error: Exception) -> tuple[ExitCode, str]:
    if isinstance(error, LfmConvertError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        if error.filename is None:
            return ExitCode.DISK, f"a file cannot be read or written: {error.strerror or error}"
        return ExitCode.DISK, str(disk_error(error, Path(error.filename)))
    return ExitCode.INTERNAL, f"internal error: {type(error).__name__}: {error} (run again with --debug and report it)"
