"""Where the files of a release lie: a folder of this machine, or a store that a URL names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...graph.errors import InputError
from ...graph.files import is_file
from ...graph.source.urls import Remote, open_url
from ...targets.target import Artifact
from ..artifacts import find_artifacts
from .state import State

if TYPE_CHECKING:
    from .parts import Made
    from .steps import Convert


class Output(ABC):
    """`folder` holds the small files of a release: manifests, cards, state, results, reports, what was calibrated.

    `shown` is the output as its user calls it, `is_here` whether artifacts lie in the folder, too.
    """

    folder: Path
    shown: str
    is_here: bool

    @property
    @abstractmethod
    def store(self) -> Remote:
        """The output as those see it who work for it elsewhere."""

    @abstractmethod
    def bring(self, *paths: Path) -> None:
        """Brings small files into the folder, as they are now; what is not there is left out."""

    @abstractmethod
    def send(self) -> None:
        """Sends the small files that are new or changed."""

    @abstractmethod
    def holds(self, files: Mapping[Path, str], state: State) -> bool:
        """Whether these files are there with these sha256. Raises: OSError or LfmConvertError where that cannot be told."""

    @abstractmethod
    def artifact(self, folder: Path, main_file: str) -> Artifact:
        """One artifact of a folder. Raises: InputError if it is not listed, or a file is missing or has another size."""

    @abstractmethod
    def adopt(self, step: Convert, made: Made) -> None:
        """Puts an artifact in its place that was made elsewhere. Raises: as `pipeline.convert`."""


class Folder(Output):
    """A folder of this machine."""

    is_here = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.shown = folder, str(folder)

    @property
    def store(self) -> Remote:
        return open_url(f"file://{self.folder.absolute().as_posix()}")  # fsspec's have no escapes

    def bring(self, *paths: Path) -> None:
        """They are there."""

    def send(self) -> None:
        """They are there."""

    def holds(self, files: Mapping[Path, str], state: State) -> bool:
        paths = list(files)
        return all(map(is_file, paths)) and state.hashes(paths) == list(files.values())

    def artifact(self, folder: Path, main_file: str) -> Artifact:
        (found,) = find_artifacts(folder, only={main_file})
        return found

    def adopt(self, step: Convert, made: Made) -> None:
        home = made.place.here
        if home is None:
            raise InputError(f"{made.place.url}: is not on this machine")
        step.write(written=home / step.artifact.folder.relative_to(self.folder))


def remove(place: Remote) -> None:
    """Removes a folder of a store, if it is there; what cannot be removed stays."""
    with suppress(Exception):  # stores raise what they like
        place.fs.rm(place.path, recursive=True)
