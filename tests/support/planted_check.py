"""Validates one artifact with a planted bug, and tells what found it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lfm_convert.graph.graph import WeightGraph
from lfm_convert.validate.gates import Part
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from lfm_convert.validate.results import ArtifactResult, Verdict
from lfm_convert.validate.suites import choose_prompts

from support.real_bugs import Planted, plant

_LANGUAGES = ("en", "de", "ja")


@dataclass(frozen=True)
class Finding:
    """What a validation made of a bug: the gates of the first part that failed, and the sentence that names it."""

    planted: Planted
    result: ArtifactResult
    part: Part | None
    gates: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        planted = self.planted
        is_found = self.part is planted.part and planted.gate in self.gates
        return is_found and self.result.verdict is Verdict.FAIL and planted.where in self.result.message

    @property
    def caught_by(self) -> str:
        return f"`{self.part.value}`: {', '.join(f'`{gate}`' for gate in self.gates)}" if self.part else "nothing"

    @property
    def says(self) -> str:
        """The sentence that names the bug, or the first of all."""
        sentences = self.result.message.split("; ")
        return next((text for text in sentences if self.planted.where in text), sentences[0])


def few_prompts() -> tuple[Prompt, ...]:
    """Some of the smoke suite: enough for every gate, in a second."""
    chosen = choose_prompts(None, suite="smoke")
    return tuple(prompt for prompt in chosen if prompt.language in _LANGUAGES or prompt.kind != "prose")


def check_planted(planted: Planted, graph: WeightGraph, folder: Path) -> Finding:
    """Plants the bug in an artifact of the graph, and validates that against the graph."""
    artifact = plant(planted, graph, folder)
    report = validate([artifact], graph, prompts=few_prompts(), threads=1, find_target=planted.find_target)
    result = report.results[0]
    failed = [gate for gate in result.gates if not gate.passed]
    part = min((gate.part for gate in failed), key=list(Part).index, default=None)
    return Finding(planted, result, part, tuple(gate.name for gate in failed if gate.part is part))
