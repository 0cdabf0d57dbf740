"""Where wllama and a Node.js that can run it are installed. npm brings both; neither is in a Python wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ....graph.errors import BackendError

PINNED_VERSION = "3.13.0"
# A folder in which npm installed it, if that is not the working directory or one above it.
FOLDER_VARIABLE = "LFM_CONVERT_WLLAMA"
_FIRST_NODE = 24  # the first with 64-bit memories
_NPM = f"npm install @wllama/wllama@{PINNED_VERSION} node@{_FIRST_NODE}"
_VERSION_S = 60.0


@dataclass(frozen=True)
class Installation:
    """`node` is a program, `package` the folder of wllama's files."""

    node: Path
    package: Path


def missing() -> str | None:
    """The npm line that brings the pinned release and a Node.js for it, or None if both are installed."""
    return None if isinstance(_find(), Installation) else _NPM


def installation() -> Installation:
    """Raises: BackendError with the npm line if something is missing."""
    found = _find()
    if not isinstance(found, Installation):
        raise BackendError(f"running this file needs wllama {PINNED_VERSION}, {found}: {_NPM}")
    return found


def _find() -> Installation | str:
    """What is installed, or what is not."""
    packages = [folder / "node_modules/@wllama/wllama" for folder in _folders()]
    package = next((path for path in packages if (path / "package.json").is_file()), None)
    if package is None:
        return "found none"
    version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    if version != PINNED_VERSION:
        return f"found {version} in {package}"
    for name in (package.parents[1] / ".bin/node", shutil.which("node")):
        if name is not None and _node_version(Path(name)) >= _FIRST_NODE:
            return Installation(Path(name), package)
    return f"and Node.js {_FIRST_NODE} or newer to run it"


def _folders() -> Iterator[Path]:
    """Where npm's own rule would look: from the working directory upwards."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        yield Path(named).resolve()
        return
    here = Path.cwd()
    yield from (here, *here.parents)


def _node_version(node: Path) -> int:
    """The major version of a Node.js; 0 if there is none."""
    try:
        said = subprocess.run(
            [node, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=True
        ).stdout
        return int(said.removeprefix("v").partition(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
