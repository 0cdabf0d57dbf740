"""A folder that one run at a time writes to, where files appear whole or not at all.

New files are built in a hidden folder inside the destination, hence on its own device, flushed to disk, and moved in by
renames under a commit record. Before the record exists a failure leaves the destination as it was; once it exists,
everything new is whole on disk, and whoever comes next finishes the renames.

    OUT/.lfm-convert.lock        held by the run that writes, gone with it
    OUT/.lfm-publish.lock        held while files are moved in or the manifest is changed, by whoever does it
    OUT/.lfm-partial/new/…       files under construction, at the paths they will have
    OUT/.lfm-partial/scratch/…   what is needed meanwhile only
    OUT/.lfm-partial/work.json   which plan they belong to, so that `--resume` may go on with them
    OUT/.lfm-partial/journal     which parts of it are written
    OUT/.lfm-partial/commit.json the record of the moves
    OUT/SUB/.lfm-carried/        new files of a sub-folder that is another device's mount point
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..graph.errors import DiskError
from ..graph.files import disk_error, flush
from ..graph.units import format_size

_LOCK = ".lfm-convert.lock"
_SHORT_LOCK = ".lfm-publish.lock"
_STAGING = ".lfm-partial"
_CARRIED = ".lfm-carried"
_NEW, _SCRATCH, _WORK, _JOURNAL, _COMMIT = "new", "scratch", "work.json", "journal", "commit.json"
_SPARE_BYTES = 16 << 20  # headers, manifest and file-system overhead beside the planned bytes
_PATIENCE_S = 10.0  # what is waited for another run's renames


class Staging:
    """Files under construction in `folder`; `publish` moves them into the destination, and leaves those in `scratch`.

    Once `is_committed` they will be there, whatever happens.
    """

    is_committed = False

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._private = destination / _STAGING
        self.folder = self._private / _NEW
        self.scratch = self._private / _SCRATCH
        self.journal = self._private / _JOURNAL

    def publish(self, *, remove: Iterable[str] = ()) -> None:
        """Moves every file built so far to the same relative path; then drops the paths in `remove`.

        For who holds `published_alone`.
        """
        names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        moves = {name: self._movable(name) for name in names}
        record = self._private / _COMMIT
        record.write_text(json.dumps({"moves": moves, "remove": sorted(set(remove) - set(names))}))
        for folder in {(self._destination / place).parent for place in moves.values()}:
            flush(folder)
        for path in (record, self._private):
            flush(path)
        self.is_committed = True
        _roll_forward(self._destination)

    def _movable(self, name: str) -> str:
        """Where a rename can take a new file from, flushed to disk; relative to the destination."""
        built = self.folder / name
        home = _existing_parent(self._destination / name)
        if home.stat().st_dev != built.stat().st_dev:
            built = _carry(built, home / _CARRIED / built.name)
        flush(built)
        return built.relative_to(self._destination).as_posix()


class Destination:
    """A folder that this process alone writes to. `path` is what the user calls it, `folder` where it really lies."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder

    def need(self, sizes: Mapping[str, int]) -> None:
        """Raises DiskError if a device has no room for new files of these sizes, or a path leads out of the folder."""
        needed: dict[Path, int] = {self.folder: _SPARE_BYTES}
        for name, n_bytes in sizes.items():
            _refuse_way_out(self.folder, name)
            needed[self.folder] += n_bytes
            home = _existing_parent(self.folder / name)
            if home.stat().st_dev != self.folder.stat().st_dev:
                needed[home] = needed.get(home, _SPARE_BYTES) + n_bytes
        for home, n_bytes in needed.items():
            free = shutil.disk_usage(home).free + (_used(home / _STAGING) if home == self.folder else 0)
            if free < n_bytes:
                where = self.path / home.relative_to(self.folder)
                raise DiskError(f"{where}: needs {format_size(n_bytes)}, and {format_size(free)} is free")

    @contextmanager
    def stage(self, *, work: str = "", resume: bool = False) -> Iterator[Staging]:
        """An empty staging folder, removed at the end.

        With `resume` it keeps what an earlier run of the same `work` left in it, and is left to a later one if this
        one fails.
        """
        staging, private = Staging(self.folder), self.folder / _STAGING
        is_done = False
        try:  # already here: a signal may come between any two lines
            if not (resume and _read_json(private / _WORK) == work):
                sweep(self.folder)
            staging.folder.mkdir(parents=True, exist_ok=True)
            (private / _WORK).write_text(json.dumps(work))
            yield staging
            is_done = True
        finally:
            with published_alone(self.folder):
                _roll_forward(self.folder)
            if is_done or not resume:
                sweep(self.folder)


@contextmanager
def owned(path: Path) -> Iterator[Destination]:
    """The destination, made if it is missing and locked against other runs; what stayed empty is removed again.

    Raises: DiskError if it cannot be written or another run writes there; a failed write inside is turned into one too.
    """
    folder = Path(os.path.realpath(path))
    try:
        with _present(folder, path), _locked(folder / _LOCK, timeout=0):
            with published_alone(folder):
                _roll_forward(folder)
            yield Destination(path, folder)
            sweep(folder)  # of a run that was killed after it had published, and left nothing to do
    except Timeout:
        raise DiskError(f"{path}: another run is writing there; wait for it or choose another --out") from None
    except OSError as error:
        raise disk_error(error, path) from error


@contextmanager
def published_alone(folder: Path) -> Iterator[None]:
    """Keeps others from moving files in or changing the manifest, for the moment that it takes.

    Raises: DiskError if another run does not come to an end; OSError if the folder cannot be written.
    """
    try:
        with _locked(folder / _SHORT_LOCK, timeout=_PATIENCE_S):
            yield
    except Timeout:
        raise DiskError(f"{folder}: another run is publishing there; wait for it") from None


def settle(path: Path) -> None:
    """Before reading a folder: finishes a publication that was interrupted, or waits for one that is under way.

    Only moves what the record names; a run that is still building its files is not disturbed.
    Raises: DiskError if the folder cannot be written.
    """
    folder = Path(os.path.realpath(path))
    if not (folder / _STAGING / _COMMIT).is_file():
        return
    try:
        with published_alone(folder):
            _roll_forward(folder)
    except OSError as error:
        raise DiskError(f"{path}: a publication was interrupted here and cannot be finished: {error}") from None


def sweep(folder: Path) -> None:
    """Removes what an interrupted run left; only for who holds the lock. A signal meanwhile is heard after it."""
    try:
        _sweep(folder)
    except BaseException:
        _sweep(folder)
        raise


def _sweep(folder: Path) -> None:
    for rest in (folder / _STAGING, *folder.glob(f"*/{_CARRIED}")):
        shutil.rmtree(rest, ignore_errors=True)


@contextmanager
def _present(folder: Path, path: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"{path}: is a file; --out must be a folder")
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    existing = missing[-1].parent if missing else folder
    if not os.access(existing, os.W_OK):
        raise DiskError(f"{existing}: is not writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # not empty: something was published; or not made
            for each in missing:
                each.rmdir()


@contextmanager
def _locked(path: Path, *, timeout: float) -> Iterator[None]:
    """The file goes while it is still locked: whoever waits on it sees that it is gone and makes a new one."""
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
            lock.release()


def _read_record(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """Moves (path -> where the new file lies) and removals; None without a whole record.

    One that was cut short was never flushed, and moved nothing.
    """
    found = _read_json(folder / _STAGING / _COMMIT)
    if not isinstance(found, dict):
        return None
    moves, remove = found.get("moves"), found.get("remove")
    if not isinstance(moves, dict) or not isinstance(remove, list):
        return None
    names = [*moves, *moves.values(), *remove]
    return (moves, remove) if all(isinstance(name, str) and name for name in names) else None


def _roll_forward(folder: Path) -> None:
    """Carries out a commit record, if there is one; may be interrupted and called again at any point."""
    record = _read_record(folder)
    if record is None:
        return
    moves, remove = record
    for name in (*moves, *moves.values(), *remove):
        _refuse_way_out(folder, name)
    for name, place in moves.items():
        source, target = folder / place, folder / name
        if source.exists():  # absent if it was moved before an interruption
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    for name in remove:
        (folder / name).unlink(missing_ok=True)
    for parent in {folder, *((folder / name).parent for name in moves)}:
        flush(parent)
    (folder / _STAGING / _COMMIT).unlink()


def _refuse_way_out(folder: Path, name: str) -> None:
    """Raises DiskError for a relative path that does not stay inside the folder, links followed."""
    path = folder / name
    parent = Path(os.path.realpath(path.parent))
    if ".." in Path(name).parts or not parent.is_relative_to(folder):
        raise DiskError(f"{path}: lies outside {folder}, in {parent}")
    if path.is_dir():
        raise DiskError(f"{path}: is a folder where a file belongs")


def _used(folder: Path) -> int:
    """Bytes on disk of what an interrupted run left: they are used again or swept."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def _carry(source: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    source.unlink()
    return target


def _existing_parent(path: Path) -> Path:
    return next(p for p in path.parents if p.exists())


def _read_json(path: Path) -> object:
    """The content of a small file of ours; None if it is absent or cut short."""
    try:
        found: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found
