"""`publish`: from a folder to the hub, in the order that sends nothing which must not be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.progress import SILENT, Progress
from .assemble import assemble
from .contents import Contents, refuse_changed
from .hub import Hub, find_token, quiet
from .upload import Place, Published, upload


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What would be sent: the sizes of all files of a repository by path. Units: bytes."""

    contents: Contents

    @property
    def total_bytes(self) -> int:
        return sum(map(self.contents.size_of, self.contents.paths))

    def to_json(self) -> dict[str, Any]:
        files = [{"path": path, "bytes": self.contents.size_of(path)} for path in self.contents.paths]
        return {"repo": self.contents.repo, "files": files, "total_bytes": self.total_bytes}


def plan_publication(
    folder: Path,
    to: str,
    *,
    only: Sequence[str] = (),
    base_model: str | None = None,
    progress: Progress = SILENT,
) -> list[Planned]:
    """What `publish` would send, after all that it checks here. Asks no hub. Raises: as `publish`, but for the hub."""
    found = assemble(folder, to, only=only, base_model=base_model)
    for contents in found:
        refuse_changed(contents, progress=progress)
    return [Planned(contents=contents) for contents in found]


def publish(
    folder: Path,
    to: str,
    *,
    place: Place | None = None,
    only: Sequence[str] = (),
    base_model: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[Published]:
    """Publishes the validated artifacts of a folder, and reads back what arrived.

    `to` names the repository, see `assign`; `only` targets, quants or main files.
    Raises, before anything is sent: UsageError, also without a token; QualityError or BudgetError for an artifact that may
    not be published; InputError for a file that is not the one which was validated. Then NetworkError, see `upload`.
    """
    place = place or Place()
    found = assemble(folder, to, only=only, base_model=base_model)
    hub = Hub(token=find_token(), progress=progress)
    hashed = [(contents, refuse_changed(contents, progress=progress)) for contents in found]
    done: list[Published] = []
    try:
        with quiet():
            for contents, hashes in hashed:
                done.append(
                    upload(contents, hashes, hub, place=place, message=message, overwrite=overwrite, progress=progress)
                )
    except BaseException as error:
        if done:
            error.add_note(f"published before that: {', '.join(each.url for each in done)}")
        raise
    return done
