"""`publish`: from a folder to the hub, in the order that sends nothing which must not be sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.errors import UsageError
from ...graph.progress import SILENT, Progress
from ...graph.units import format_size
from .assemble import assemble
from .contents import Contents, refuse_changed
from .hub import Hub, find_token, quiet
from .names import CARD_FILE
from .proofs import make_proofs
from .upload import Place, Published, upload
from .verifying import verify

__all__ = ["Place", "Planned", "Published", "plan_publication", "publish"]


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

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        yield f"{self.contents.repo}: {len(self.contents.paths)} files, {format_size(self.total_bytes)}"
        yield from (f"  {path}  {format_size(self.contents.size_of(path))}" for path in self.contents.paths)


def _proven(contents: Contents, *, key: Path | None, progress: Progress) -> tuple[Contents, dict[str, str]]:
    """Contents whose files were found to be those that were validated, with proofs if there is a key to sign with.

    The second is the sha256 of those of its files that lie here.
    """
    hashes = refuse_changed(contents, progress=progress)
    if contents.is_sealed:
        if key is not None:
            raise UsageError(
                f"--sign-key: {contents.folder} has proofs of its own already: leave it out, or remove them"
            )
        if CARD_FILE not in contents.files:
            raise UsageError(
                f"{contents.folder}: is signed and has no {CARD_FILE}, without which a hub shows nothing: write one "
                "with 'lfm-convert card' and sign again"
            )
        verify(contents.folder, progress=progress).raise_if_any()
    if key is None:
        return contents, hashes
    name = contents.repo.rpartition("/")[2]
    made = make_proofs(contents.manifest, {**contents.files, **contents.texts}, hashes, name=name, key=key)
    return contents.with_texts(made), hashes


def plan_publication(
    folder: Path,
    to: str,
    *,
    only: Sequence[str] = (),
    base_model: str | None = None,
    reports: Sequence[Path] = (),
    sign_key: Path | None = None,
    progress: Progress = SILENT,
) -> list[Planned]:
    """What `publish` would send, after all that it checks here. Asks no hub. Raises: as `publish`, but for the hub."""
    found = assemble(folder, to, only=only, base_model=base_model, reports=reports)
    return [Planned(contents=_proven(each, key=sign_key, progress=progress)[0]) for each in found]


def publish(
    folder: Path,
    to: str,
    *,
    place: Place | None = None,
    only: Sequence[str] = (),
    base_model: str | None = None,
    reports: Sequence[Path] = (),
    sign_key: Path | None = None,
    message: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[Published]:
    """Publishes the validated artifacts of a folder, and reads back what arrived.

    `to` names the repository, see `assign`; `only` targets, quants or main files. `reports` are of the
    validation, and go along. With `sign_key`, an elliptic private key, each repository gets proofs, see `make_proofs`.
    Raises, before anything is sent: UsageError, also without a token; QualityError or BudgetError for an artifact that may
    not be published; InputError for a file that is not the one which was validated. Then NetworkError, see `upload`.
    """
    place = place or Place()
    found = assemble(folder, to, only=only, base_model=base_model, reports=reports)
    hub = Hub(token=find_token(), progress=progress)
    proven = [_proven(each, key=sign_key, progress=progress) for each in found]
    done: list[Published] = []
    try:
        with quiet():
            for contents, hashes in proven:
                done.append(
                    upload(contents, hashes, hub, place=place, message=message, overwrite=overwrite, progress=progress)
                )
    except BaseException as error:
        if done:
            error.add_note(f"published before that: {', '.join(each.url for each in done)}")
        raise
    return done
