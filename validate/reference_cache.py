"""The checkpoint's own run, kept between validations: in a folder that runs of CI may share.

An entry is a folder named by the hash of what decides it: the checkpoint's files, the tokens of the prompts, and this
tool's version. One more of each checkpoint holds what stands for it where it is not at hand. Their files are held to
their recorded hashes before they are used. Entries appear whole, by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__
from ..graph.errors import LfmConvertError, UsageError
from ..graph.files import hash_files
from ..graph.graph import WeightGraph
from ..graph.progress import SILENT, Progress
from .kept_checkpoint import write_kept
from .prompts import EncodedPrompt
from .reference import FILES, Reference, compute_reference, load_reference

# The least recently used entries go when all together are larger.
LIMIT_BYTES = 4 * 10**9
# Raised when the reference computes other numbers than before under one version.
_REVISION = 2
_ENTRY = "entry.json"
_PART = ".lfm-reference-"
# In the place of a run's tokens: what stands for the checkpoint itself.
_CHECKPOINT = "checkpoint"
# What an entry is called; whatever else lies in the folder is somebody's.
_KEY = re.compile(r"[0-9a-f]{64}")
# What a killed run left is no other run's any more.
_STALE_S = 24 * 3600


@dataclass(frozen=True)
class ReferenceCache:
    """References of one checkpoint in a folder, which is made; `checkpoint_sha256` is the digest of its files' hashes.

    Raises: UsageError if there is a file in the folder's place.
    """

    folder: Path
    checkpoint_sha256: str
    progress: Progress = SILENT
    limit_bytes: int = LIMIT_BYTES

    def __post_init__(self) -> None:
        refuse_a_file(self.folder)

    def find(self, prompts: Sequence[EncodedPrompt]) -> Path | None:
        """The folder of the run on these prompts; None if there is none, or what is there is not what was kept."""
        return self._find(self._key(_tokens(prompts)))

    def keep(self, prompts: Sequence[EncodedPrompt], run: Path) -> None:
        """Copies the files of a run into the cache; a folder that cannot be written is said, and not used."""

        def write(part: Path) -> None:
            for name in FILES:
                shutil.copyfile(run / name, part / name)

        self._keep(self._key(_tokens(prompts)), write)

    def find_checkpoint(self) -> Path | None:
        """The folder of what stands for the checkpoint, see `open_kept`; None if there is none."""
        return self._find(self._key(_CHECKPOINT))

    def keep_checkpoint(self, graph: WeightGraph) -> None:
        """Keeps what stands for the checkpoint, if it is not kept yet."""
        key = self._key(_CHECKPOINT)
        if not (self.folder / key).is_dir():
            self._keep(key, lambda part: write_kept(graph, part))

    def _find(self, key: str) -> Path | None:
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            recorded = json.loads((entry / _ENTRY).read_bytes())["sha256"]
            found = _hashes(entry)
        except (OSError, LfmConvertError, ValueError, KeyError, TypeError) as error:
            self._distrust(entry, str(error))
            return None
        if found != recorded:
            self._distrust(entry, "a file has another sha256 than was recorded")
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry / _ENTRY)
        return entry

    def _keep(self, key: str, write: Callable[[Path], None]) -> None:
        """An entry of what `write` puts into an empty folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=_PART, dir=self.folder))
            try:
                write(part)
                (part / _ENTRY).write_text(json.dumps({"sha256": _hashes(part)}), encoding="utf-8")
                self._place(part, self.folder / key)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._sweep()
        except OSError as error:
            self.progress.note(f"{self.folder}: the checkpoint's run is not kept: {error.strerror or error}")

    def _key(self, what: object) -> str:
        decisive = [_REVISION, __version__, self.checkpoint_sha256, what]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def _distrust(self, entry: Path, why: str) -> None:
        self.progress.note(f"{entry}: is not used, and computed again: {why}")
        shutil.rmtree(entry, ignore_errors=True)

    def _place(self, part: Path, entry: Path) -> None:
        part.chmod(0o755)  # a temporary folder is its owner's only
        try:
            part.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another run was first with the same numbers
                raise

    def _sweep(self) -> None:
        """Drops the entries that were not used for longest, until the rest is within the limit, and what others left."""
        used: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                if path.name.startswith(_PART):
                    if time.time() - path.stat().st_mtime > _STALE_S:
                        shutil.rmtree(path, ignore_errors=True)
                elif _KEY.fullmatch(path.name):
                    size = sum(file.stat().st_size for file in path.rglob("*"))
                    used.append(((path / _ENTRY).stat().st_mtime, size, path))
            except OSError:
                continue  # no entry, or another run's to sweep
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used)[:-1]:
            if total > self.limit_bytes:
                shutil.rmtree(path, ignore_errors=True)
                total -= size


def reference_of(
    graph: WeightGraph,
    prompts: Sequence[EncodedPrompt],
    kept: ReferenceCache | None,
    folder: Path,
    *,
    note: Callable[[str], None],
    on_prompt: Callable[[int], None] = lambda done: None,
) -> Reference:
    """The checkpoint's run on these prompts: as it is kept, else made in a temporary folder and kept.

    `on_prompt` hears how many prompts are run. Raises: UsageError for a run that is not kept, of a checkpoint that is not
    at hand; as `compute_reference`.
    """
    found = kept.find(prompts) if kept else None
    if kept and graph.is_at_hand:
        kept.keep_checkpoint(graph)
    if found:
        note(f"the checkpoint's run on {len(prompts)} prompts is taken from {found.parent}")
        return load_reference(graph, prompts, found)
    if not graph.is_at_hand:
        raise UsageError(
            f"--reference is needed: {graph.name} is not at hand, and no run of it on these {len(prompts)} "
            f"prompts is kept{f' in {kept.folder}' if kept else ''}"
        )
    note(f"running the checkpoint itself on {len(prompts)} prompts")
    run = folder / "reference"
    run.mkdir()
    reference = compute_reference(graph, prompts, run, on_prompt=on_prompt)
    if kept:
        kept.keep(prompts, run)
    return reference


def _tokens(prompts: Sequence[EncodedPrompt]) -> list[tuple[int, ...]]:
    return [prompt.token_ids for prompt in prompts]


def _hashes(entry: Path) -> dict[str, str]:
    """sha256 of every file of an entry but the one that records them."""
    files = sorted(path for path in entry.rglob("*") if path.is_file() and path != entry / _ENTRY)
    names = (path.relative_to(entry).as_posix() for path in files)
    return dict(zip(names, hash_files(files, jobs=1), strict=True))


def refuse_a_file(folder: Path | None) -> None:
    """Raises UsageError if a cache cannot be where it was asked for."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"--reference-cache {folder}: is a file; name a folder")
