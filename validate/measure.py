"""What a model's outputs are compared by: the divergence of its logits, or of its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from ..graph.config import ModelConfig
from .metrics import Float64, LogitRows, position_kld, score_prompt
from .prompts import EncodedPrompt
from .vectors import score_vectors, vector_distances


class Score(Protocol):
    """One prompt by position or vector. `divergence` grows with the square of the noise, whatever is compared."""

    @property
    def id(self) -> str: ...

    @property
    def finite(self) -> bool: ...

    @property
    def divergence(self) -> Float64: ...

    def first(self, n: int) -> Self:
        """The same of its first n positions or vectors."""


@dataclass(frozen=True)
class Measure:
    """`name` is what gates call a divergence, `of` that of a model's outputs [n, D] from other ones, row by row."""

    name: str
    of: Callable[[LogitRows, LogitRows], Float64]
    score: Callable[[EncodedPrompt, LogitRows, LogitRows], Score]


LOGITS = Measure("kld", position_kld, score_prompt)
VECTORS = Measure("distance", vector_distances, score_vectors)


def measure_of(config: ModelConfig) -> Measure:
    """What the outputs of a model are compared by."""
    return LOGITS if config.vectors is None else VECTORS
