"""What all steps of a release share, and what a step is."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ...graph.packages import versions
from ...graph.progress import SILENT, Progress
from ...validate.baseline import Baseline
from ..manifest import named_hashes, source_files
from .output import Output
from .parts import Made
from .prepared import Preparation
from .state import State


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all steps of a run share. `jobs` are workers of a conversion, None for all cores."""

    preparation: Preparation
    state: State
    progress: Progress = SILENT
    overwrite: bool = False
    jobs: int | None = None
    baseline: Baseline | None = None
    _sources: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    @property
    def output(self) -> Output:
        return self.preparation.output

    def source_hashes(self, label: str) -> Mapping[str, str]:
        """sha256 of a model's files by path, taken once for all artifacts of it."""
        if label not in self._sources:
            graph = self.preparation.graphs[label]
            found = self.state.hashes(list(source_files(graph).values()), progress=self.progress)
            self._sources[label] = named_hashes(graph, found)
        return self._sources[label]

    @cached_property
    def environment(self) -> Sequence[Any]:
        """What results depend on beside artifact and checkpoint: runtimes and kind of machine."""
        return [versions(), platform.system(), platform.machine()]

    @cached_property
    def prompts(self) -> Sequence[Any]:
        """What decides which tokens are compared."""
        comparison = self.preparation.comparison
        texts = [path for name in ("prompts", "text") if (path := comparison.get(name)) is not None]
        return [comparison.get("suite"), comparison.get("n_chunks"), self.state.hashes(texts)]

    def place(self, path: Path) -> str:
        """A path of the output folder as the state has it."""
        return path.relative_to(self.preparation.out).as_posix()


class Step(ABC):
    """One piece of work. What it `needs` is done before; one that is `on_demand` only when another is about to need it.

    One that `travels` may be carried out on another machine, on a site of its own; this one then takes what it made there.
    """

    kind: ClassVar[str]
    on_demand: ClassVar[bool] = False
    travels: ClassVar[bool] = True

    def __init__(self, site: Site, name: str, needs: Sequence[Step] = ()) -> None:
        self.site, self.name, self.needs = site, name, tuple(needs)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}".strip()

    @abstractmethod
    def is_done(self) -> bool:
        """Whether what it makes is there already, by its key; asked when everything that it needs is done."""

    @abstractmethod
    def carry_out(self) -> None:
        """Does the work. Raises: whatever is wrong."""

    def products(self) -> Sequence[Path]:
        """The files that were made, once it is carried out: all that `take` needs."""
        return ()

    def findings(self) -> Any:
        """What was found beside, as JSON."""
        return None

    def take(self, made: Made) -> None:
        """In place of carrying it out: takes what the same step made on another site. Raises: whatever is wrong."""
        raise NotImplementedError(f"{self.label} is carried out here")
