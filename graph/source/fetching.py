"""Fetches a checkpoint that a URL names into a cache on this machine, whole and held to what its store says of it.

    CACHE/checkpoints/KEY/NAME/…      the files, under the checkpoint's own name
    CACHE/checkpoints/KEY.lock        held by who fetches them

KEY is the sha256 of the URL and of what the store says of each file: a file that is changed is another entry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from ..errors import DiskError, InputError, NetworkError, UsageError
from ..files import disk_error
from ..progress import SILENT, Progress
from ..units import format_size
from .cache import cache_folder, sweep
from .hub import HUB_ID, fetch
from .urls import Remote, open_url, scheme_of, stamp_of, told

_DEPTH = 2  # folders of a checkpoint that are looked into: its own, and that of named chat templates
_PIECE = 1 << 20
_HUB_URL = re.compile(r"hf://(?:models/)?([^/@]+/[^/@]+)(?:@([^/]+))?/?")


def fetch_url(
    url: str,
    patterns: Sequence[str],
    *,
    offline: bool = False,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Path:
    """The folder with the files below a URL that match one of the patterns: the cache's, or the one that it names here.

    Raises: as `open_url`; InputError where there is no such file; NetworkError for one that does not come as its store
    says it is, or for any with `offline`; DiskError if the cache has no room.
    """
    if scheme_of(url) == "hf":
        return _from_hub(url, patterns, offline=offline, token=token)
    remote = open_url(url)
    if remote.here is not None:
        if not remote.here.is_dir():
            raise InputError(f"{url}: no such folder")
        return remote.here
    if offline:
        raise NetworkError(f"{url}: is in a store, and --offline asks none: name a local folder")
    files = _listed(remote, patterns)
    key = hashlib.sha256(json.dumps([url, {name: stamp_of(info) for name, info in files.items()}]).encode())
    home = cache_folder("checkpoints")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{key.hexdigest()}.lock"):
            return _cached(remote, files, home / key.hexdigest(), progress)
    except OSError as error:
        raise disk_error(error, home) from error


def _from_hub(url: str, patterns: Sequence[str], *, offline: bool, token: str | None) -> Path:
    """The snapshot of a repository, which the hub's own cache keeps. Raises: UsageError for a part of one."""
    found = _HUB_URL.fullmatch(url)
    if found is None or not HUB_ID.fullmatch(found[1]):
        raise UsageError(f"{url}: expected hf://ORG/NAME, or hf://ORG/NAME@REVISION")
    revision = unquote(found[2]) if found[2] else None
    return fetch(found[1], patterns, revision=revision, offline=offline, token=token)


def _listed(remote: Remote, patterns: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What the store tells of each file that is asked for, by its path below the URL."""
    root = remote.path.rstrip("/") + "/"
    with told(remote.url):
        found = remote.fs.find(remote.path, maxdepth=_DEPTH)
        names = [path.removeprefix(root) for path in sorted(found) if path.startswith(root)]
        wanted = [name for name in names if any(fnmatchcase(name.rpartition("/")[2], each) for each in patterns)]
        # Not from the listing, which some stores fill in otherwise.
        infos = {name: remote.fs.info(root + name) for name in wanted}
    if not infos:
        raise InputError(f"{remote.url}: holds no checkpoint (found {', '.join(names[:3]) or 'nothing'})")
    if any(".." in Path(name).parts for name in infos):
        raise InputError(f"{remote.url}: a file there has a name that leads out of its folder")
    return infos


def _cached(remote: Remote, files: Mapping[str, Mapping[str, Any]], entry: Path, progress: Progress) -> Path:
    """The entry's folder, fetched if it is not there whole; for who holds its lock."""
    folder = entry / (remote.name or "model")
    sizes = {name: int(info["size"]) for name, info in files.items()}
    if all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()):
        os.utime(entry)
        return folder
    needed, free = sum(sizes.values()), shutil.disk_usage(entry.parent).free
    if free < needed:
        raise DiskError(f"{entry.parent}: {remote.url} has {format_size(needed)}, and {format_size(free)} is free")
    progress.start(f"fetching {remote.url}", needed, "bytes")
    part = Path(tempfile.mkdtemp(prefix="part-", dir=entry.parent))
    try:
        for name, info in files.items():
            _fetch(remote / name, part / folder.name / name, info, progress)
        shutil.rmtree(entry, ignore_errors=True)
        part.chmod(0o755)
        part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sweep(entry.parent, keep=entry)
    return folder


def _fetch(remote: Remote, path: Path, info: Mapping[str, Any], progress: Progress) -> None:
    """One file, which is as the store said and has not changed there meanwhile. Raises: NetworkError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, n_bytes = hashlib.md5(usedforsecurity=False), 0
    with told(remote.url), remote.fs.open(remote.path, "rb") as source, path.open("wb") as target:
        while piece := source.read(_PIECE):
            target.write(piece)
            digest.update(piece)
            n_bytes += len(piece)
            progress.advance(len(piece))
    with told(remote.url):
        now = remote.fs.info(remote.path)
    if n_bytes != info["size"] or stamp_of(now) != stamp_of(info):
        raise NetworkError(
            f"{remote.url}: came as {n_bytes} bytes: expected {info['size']}, unchanged while it was read"
        )
    expected = info.get("md5Hash")
    if expected and base64.b64decode(expected) != digest.digest():
        raise NetworkError(f"{remote.url}: came with md5 {digest.hexdigest()}, which is not what the store has of it")
