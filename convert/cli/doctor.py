"""`lfm-convert doctor`: is this machine ready."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...graph.packages import RUNNING, WRITING, installed
from ...graph.units import format_size
from .console import Json, output, print_json


def doctor(as_json: Json = False) -> int:
    """Show versions, cores, memory, disk, and what each target still needs."""
    from ...targets.target import get_target, target_names

    found: dict[str, Any] = {
        "lfm-convert": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(Path()).free,
        "packages": {name: installed(name) for name in (*WRITING, *RUNNING)},
        "targets": {name: get_target(name).missing() for name in target_names()},
    }
    if as_json:
        print_json(found)
        return 0
    for key in ("lfm-convert", "python", "platform", "cores"):
        output.print(f"{key}: {found[key]}")
    for key in ("memory_bytes", "free_disk_bytes"):
        output.print(
            f"{key.removesuffix('_bytes').replace('_', ' ')}: {format_size(found[key]) if found[key] else 'unknown'}"
        )
    for name, version in found["packages"].items():
        output.print(f"{name}: {version or 'not installed'}")
    for name, missing in found["targets"].items():
        output.print(f"target {name}: " + (f"needs {missing}" if missing else "ready"))
    return 0


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
