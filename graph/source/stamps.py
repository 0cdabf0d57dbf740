"""What files of a source looked like when they were opened, and whether they still do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class SourceStamp:
    """What a source file looked like when it was opened. Units: bytes, nanoseconds."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


def stamp_of(path: Path) -> SourceStamp:
    """Raises: OSError for a file that is not there."""
    status = path.stat()
    return SourceStamp(path, status.st_size, status.st_mtime_ns, status.st_ino)


def refuse_changed(stamps: Iterable[SourceStamp]) -> None:
    """Raises InputError if a source file was replaced or written to since it was opened."""
    for stamp in stamps:
        if not stamp.path.is_file() or stamp_of(stamp.path) != stamp:
            raise InputError(f"{stamp.path}: changed while it was being converted")
