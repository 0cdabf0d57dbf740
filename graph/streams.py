"""The standard streams: open whatever the shell left of them, and silent once nobody reads them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from .errors import DiskError


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
