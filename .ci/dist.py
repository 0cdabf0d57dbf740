"""What a tag publishes: wheel and source of its version in dist/, and the version's section of CHANGELOG.md as notes.md.

    python .ci/dist.py v0.1.0

Ends with 1, before anything is built, for a tag of another version than the package says, or one that the changelog has no
section of, or calls unreleased.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from setuptools import build_meta

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_HEADING = re.compile(r"^## (?P<version>\S+), (?P<date>.+)$", re.MULTILINE)


def main(tag: str) -> None:
    version = found_version()
    if tag != f"v{version}":
        raise SystemExit(f"tag {tag}: expected v{version}, the version in convert/_root/_version.py")
    notes = section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    os.chdir(ROOT)
    DIST.mkdir(exist_ok=True)
    for built in (build_meta.build_wheel(str(DIST)), build_meta.build_sdist(str(DIST))):
        print(DIST / built)
    (DIST / "notes.md").write_text(notes, encoding="utf-8")


def found_version() -> str:
    text = (ROOT / "convert/_root/_version.py").read_text(encoding="utf-8")
    match = _VERSION.search(text)
    if match is None:
        raise SystemExit("convert/_root/_version.py: has no __version__")
    return match[1]


def section(changelog: str, version: str) -> str:
    """What changed with a version. Raises: SystemExit for one that is not there, or not released."""
    headings = list(_HEADING.finditer(changelog))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading["version"] != version:
            continue
        if heading["date"] == "unreleased":
            raise SystemExit(f"CHANGELOG.md: {version} is called unreleased: expected its date")
        return changelog[heading.end() : following.start() if following else None].strip() + "\n"
    raise SystemExit(f"CHANGELOG.md: has no section '## {version}, DATE'")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
