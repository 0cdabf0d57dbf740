"""Writes what a command reports to where its user wants it: a file, standard output, a device, a pipe or a link.

A file is replaced in one step, and a link to one stays a link. What is no regular file is written into: renaming a
new file over a device or a pipe would put a file in its place.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from ..graph.errors import DiskError, UsageError
from ..graph.streams import write_out

# What names this process's own standard output. A file that it was redirected to must not be replaced under it.
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
# Names here are open files of a process or devices, whatever lies behind them: what is there is added to.
_OPEN_FILES = ("/dev/", "/proc/")
# A file may be writable where its folder is not, or be a mount of its own: then it is written in place.
_NO_REPLACING = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS}


def is_stdout(path: Path) -> bool:
    """Whether a report goes to standard output: `-`, or one of the system's names of it."""
    return str(path) in _STDOUT


def check_reports(reports: Iterable[Path | None], *, read: Iterable[Path] = ()) -> None:
    """Makes the folders of reports, before the work that is reported on; None is a report that nobody asked for.

    `read` are the files that the work reads. Raises: DiskError for a report that cannot be written; UsageError for two
    that would go to the same place, and for one that would replace what is read.
    """
    taken: list[Path] = []
    inputs = {path.resolve() for path in read}
    for path in reports:
        if path is None:
            continue
        home = Path("-") if is_stdout(path) else path.resolve()
        if home in taken:
            where = "standard output" if is_stdout(path) else str(path)
            raise UsageError(f"{where} is named for two reports: give each a file of its own")
        if home in inputs:
            raise UsageError(f"{path}: is read by this run, and the report would replace it: choose another file")
        taken.append(home)
        check_report(path)


def check_report(path: Path) -> None:
    """Makes the folder of a report. Raises: DiskError if the report cannot be written."""
    if is_stdout(path):
        return
    try:
        if path.is_dir():
            raise DiskError(f"{path}: is a folder: expected a file to write")
        if _is_written_into(path):
            if not os.access(path, os.W_OK):
                raise DiskError(f"{path}: is not writable")
            return
        home = path.resolve()
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.is_file() and os.access(home, os.W_OK):
            return
        part = _part(home)
        part.touch()
        part.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_report(path: Path, content: str | bytes) -> None:
    """Writes a report as UTF-8; what no UTF-8 holds, such as bytes of a file name, is spelled as an escape.

    A pipe whose reader has gone takes no more, which is no fault. Raises: DiskError.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        if is_stdout(path):
            write_out(data)
        elif _is_written_into(path):
            with path.open("ab", buffering=0) as file:
                _write_all(file.fileno(), data)
        else:
            _replace(path.resolve(), data)
    except BrokenPipeError:
        return
    except OSError as error:
        raise _unwritable(path, error) from error


def _is_written_into(path: Path) -> bool:
    if not path.exists():
        return False
    return str(path.absolute()).startswith(_OPEN_FILES) or not stat.S_ISREG(path.stat().st_mode)


def _replace(path: Path, data: bytes) -> None:
    part = _part(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    except OSError as error:
        if error.errno not in _NO_REPLACING or not path.is_file():
            raise
        path.write_bytes(data)
    finally:
        part.unlink(missing_ok=True)  # there if it failed, or a signal came


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _part(path: Path) -> Path:
    """A name beside the file that no other run uses, and that fits wherever the file's own does."""
    return path.with_name(f".{os.getpid()}.lfm-partial")


def _unwritable(path: Path, error: OSError) -> DiskError:
    return DiskError(f"{path}: cannot be written: {error.strerror or error}")
