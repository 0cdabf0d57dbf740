"""What a caller may watch of a long step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`start` names a step, its total and the unit of both (`bytes`, `prompts`); `advance` adds to the step
    begun last; `note` gets sentences worth a line. The default watches nothing.
    """

    start: Callable[[str, int, str], None] = lambda label, total, unit: None
    advance: Callable[[int], None] = lambda amount: None
    note: Callable[[str], None] = lambda sentence: None


SILENT = Progress()
