"""The folder in which this tool keeps what can be fetched again, and its limit."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ..units import parse_size

# Environment variables: where it is, and how much it may hold.
PLACE, LIMIT = "LFM_CONVERT_CACHE", "LFM_CONVERT_CACHE_LIMIT"
_LIMIT = "100GB"
_SPARED_S = 3600.0  # what was used within it may be in use


def cache_folder(name: str) -> Path:
    """The folder of one kind of things in the cache, which need not be there."""
    place = os.environ.get(PLACE)
    home = Path(place) if place else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfm-convert"
    return home.expanduser() / name


def sweep(folder: Path, *, keep: Path) -> None:
    """Removes the entries of a folder that were not used for longest, until the rest is within the limit.

    Raises: UsageError for a limit that is no size.
    """
    limit = parse_size(os.environ.get(LIMIT) or _LIMIT)
    used = []
    for entry in folder.iterdir():
        if entry.is_dir():
            size = sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())
            used.append((entry.stat().st_mtime, size, entry))
    total = sum(size for _, size, _ in used)
    for last, size, entry in sorted(used):
        if total > limit and entry != keep and time.time() - last > _SPARED_S:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
