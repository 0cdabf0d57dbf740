"""The standard streams: open whatever the shell left of them, silent once nobody reads them, and ours alone."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import DiskError, LfmConvertError

_STDERR = 2


def open_standard_streams() -> None:
    """Gives streams that the shell closed to the null device.

    Else the next file that is opened, such as an artifact, would get the number of one, and what a library prints.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (open for the process's life)


def keep_stderr() -> None:
    """Gives `sys.stderr` a descriptor of its own, so that `held_back` does not hold it back, too."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):
        return  # no file of the system, as in a test
    sys.stderr = open(  # noqa: SIM115, PTH123 (open for the process's life; a descriptor has no path)
        descriptor, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1
    )


@contextmanager
def held_back() -> Iterator[None]:
    """Keeps what libraries print on the error stream themselves, beside `sys.stderr`, which must have been kept from it:
    torch and its relatives have much to say of themselves. It is told if what is done ends by an error that is not ours.
    """
    file = _somewhere() if _has_kept_stderr() else None
    if file is None:
        yield
        return
    with file:
        before = os.dup(_STDERR)
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        except Exception as error:
            if not isinstance(error, LfmConvertError):
                file.seek(0)
                os.write(before, file.read())
            raise
        finally:
            os.dup2(before, _STDERR)
            os.close(before)


def _somewhere() -> IO[bytes] | None:
    """A temporary file; None where there is no room for one, which is no reason to stop."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return None


def _has_kept_stderr() -> bool:
    try:
        return sys.stderr.fileno() != _STDERR
    except (AttributeError, OSError, ValueError):
        return False


def write_out(data: bytes | str) -> None:
    """Writes to standard output, all at once; a reader who has gone takes no more, which is nobody's fault.

    Raises: DiskError if it cannot be written.
    """
    try:
        if isinstance(data, str):
            sys.stdout.write(data)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        raise unwritable_output(error) from error


def unwritable_output(error: OSError) -> DiskError:
    """The sentence for standard output that takes nothing; what is left in its buffer is dropped."""
    silence(sys.stdout)
    return DiskError(f"standard output: cannot be written: {error.strerror or error}")


def silence(stream: IO[str]) -> None:
    """Sends what is still to be written to the null device, so that the end of the process does not fail over it."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return  # no file of the system, as in a test
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
