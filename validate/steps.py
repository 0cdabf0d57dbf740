"""Where a validation stands, for whoever watches it: which artifact, which step of it, how long the rest may take."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..graph.progress import SILENT, Progress

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Step:
    """A step and how far it is; a total of 0 is not known."""

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""


@dataclass
class Steps:
    """Tells the progress of one validation of so many artifacts, one after the other."""

    progress: Progress = SILENT
    n_artifacts: int = 1
    _subject: str = CHECKPOINT
    _number: int = 0
    _seconds: list[float] = field(default_factory=list)
    _shown: Step | None = None

    def begin_artifact(self, label: str) -> None:
        """The steps from now on are those of this artifact."""
        self._number += 1
        place = "" if self.n_artifacts == 1 else f"{self._number} of {self.n_artifacts}"
        self.progress.note(", ".join(filter(None, [f"running {label}", place, self._left()])))
        self._subject = " ".join(filter(None, [place and f"[{place}]", label]))
        self._shown = None

    def end_artifact(self, seconds: float) -> None:
        """What comes until the next begins is the checkpoint's."""
        self._seconds.append(seconds)
        self._subject, self._shown = CHECKPOINT, None

    def reach(self, step: Step) -> None:
        """Shows a step: begins it if it is another one than before, else goes on to where it is."""
        shown = self._shown
        if shown is None or shown.name != step.name:
            left = self._left()
            self.progress.start(f"{self._subject}: {step.name}{left and f' ({left})'}", step.total, step.unit)
            shown = Step(step.name)
        if step.done > shown.done:
            self.progress.advance(step.done - shown.done)
        self._shown = step

    def _left(self) -> str:
        """`about 4 min left`, from what the artifacts before took; nothing before the first is through."""
        n_left = self.n_artifacts - len(self._seconds)
        if not self._seconds or not n_left:
            return ""
        minutes = sum(self._seconds) / len(self._seconds) * n_left / 60
        return f"about {minutes:.0f} min left" if minutes >= 1 else "less than a minute left"
