"""Whose a file in the destination is: a run replaces its own, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..graph.errors import UsageError
from ..graph.files import hash_files, is_file
from ..graph.graph import WeightGraph
from ..targets.plans import Plan
from .destination import Destination
from .manifest import Manifest, source_paths

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """What the manifest of a destination says a conversion wrote, and what is the checkpoint's.

    A file that is there and equal to what would be written belongs to whoever put it there, and is left alone. A run that
    `renews` may replace the files of artifacts that are as a conversion wrote them.
    """

    destination: Destination
    manifest: Manifest | None
    graph: WeightGraph
    target: str
    renews: bool = False

    def refuse_foreign(self, plans: Sequence[Plan], shared: Iterable[Mapping[str, bytes]], *, overwrite: bool) -> None:
        """Raises UsageError naming the files in the way of plans and of the shared files, as they will be in turn."""
        path, folder = self.destination.path, self.destination.folder
        artifacts = {file.path for plan in plans for file in plan.files if (folder / file.path).exists()}
        others = {name for stage in shared for name in self.to_write(stage) if (folder / name).exists()}
        sources = sorted(name for name in artifacts | others if self._is_source(name))
        if sources:
            raise UsageError(
                f"{path}: {_listed(sources)} {_are(sources)} the checkpoint's own and would be replaced; "
                "choose another --out"
            )
        if overwrite:
            return
        if self.renews:
            artifacts = {name for name in artifacts if not self._is_ours(name)}
        foreign = sorted(artifacts | {name for name in others if not self._is_ours(name)})
        if foreign:
            raise UsageError(
                f"{path}: {_listed(foreign)} {_are(foreign)} there, not as lfm-convert wrote it for target "
                f"{self.target}, and would be replaced; choose another --out, or --overwrite replaces it"
            )

    def to_write(self, shared: Mapping[str, bytes]) -> dict[str, bytes]:
        """The shared files that are not there as they should be."""
        return {name: data for name, data in shared.items() if _content(self.destination.folder / name) != data}

    def obsolete(self, new: Manifest) -> list[str]:
        """Files of replaced artifacts that their successors no longer have, such as a surplus data chunk."""
        if self.manifest is None:
            return []
        gone = set(self.manifest.owned_files()) - set(new.owned_files())
        return sorted(name for name in gone if self._is_ours(name) and not self._is_source(name))

    def _is_source(self, name: str) -> bool:
        """Whether a file is one the checkpoint is read from, or lies in its folder and was not written by a conversion."""
        place = (self.destination.folder / name).resolve()
        if any(place == path.resolve() for path in source_paths(self.graph)):
            return True
        is_all = self.graph.checkpoint is not None and self.graph.checkpoint.are_all
        return not is_all and place.is_relative_to(self.graph.folder.resolve()) and not self._is_listed(name)

    def _is_ours(self, name: str) -> bool:
        """Whether a conversion wrote the file, nobody has changed it since, and no other target's artifacts need it."""
        return self._is_listed(name) or self._is_of_before(name)

    def _is_of_before(self, name: str) -> bool:
        """Whether it may be a shared file of a version that did not note them: of a target that has artifacts here."""
        if self.manifest is None or self.manifest.shared is not None or name in self.manifest.owned_files():
            return False
        return any(artifact["target"] == self.target for artifact in self.manifest.artifacts)

    def _is_listed(self, name: str) -> bool:
        if self.manifest is None:
            return False
        path, entry = self.destination.folder / name, self.manifest.owned_files().get(name)
        if entry is None or not is_file(path) or path.stat().st_size != entry["bytes"]:
            return False
        user = entry.get("target", self.target)
        is_needed = user != self.target and any(artifact["target"] == user for artifact in self.manifest.artifacts)
        return not is_needed and hash_files([path], jobs=1) == [entry["sha256"]]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if is_file(path) else None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
