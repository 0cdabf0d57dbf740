"""Two artifacts of one model on the same prompts: what separates variants that single numbers cannot.

Source: McNemar 1947 (exact, two-sided) on same-top-1; the error of the difference is that of the paired prompts, which
is far smaller than the errors of both means together.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..graph.errors import InputError, UsageError
from .metrics import json_safe, mean_and_error
from .results import ArtifactResult

# A difference counts beyond this many standard errors.
_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the second artifact differs from the first.

    Units: `kld_difference` in nats, positive if the second is further from the checkpoint. `only_first`,
    `only_second` count positions where one alone keeps the checkpoint's top token; `p_value` is McNemar's.
    """

    first: str
    second: str
    n_positions: int
    kld_difference: float
    kld_se: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def second_is_worse(self) -> bool:
        return self.kld_difference > _ERRORS * self.kld_se

    @property
    def sentence(self) -> str:
        if abs(self.kld_difference) <= _ERRORS * self.kld_se:
            return f"{self.first} and {self.second} cannot be told apart"
        further, nearer = (self.second, self.first) if self.kld_difference > 0 else (self.first, self.second)
        return f"{further} is further from the checkpoint than {nearer}"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json_safe({**asdict(self), "second_is_worse": self.second_is_worse})
        return found


def compare_results(first: ArtifactResult, second: ArtifactResult) -> Comparison:
    """Pairs the positions of two results of one validation.

    Raises: InputError if one of them has no logits to compare; UsageError for one prompt, which has no error.
    """
    for result in (first, second):
        if result.metrics is None or not result.metrics.finite:
            raise InputError(f"{result.artifact.label}: nothing to compare: {result.message or 'it was not run'}")
    if len(first.scores) < 2:
        raise UsageError("one prompt tells no error of a difference: give two or more")
    differences = [b.kld - a.kld for a, b in zip(first.scores, second.scores, strict=True)]
    difference, error = mean_and_error(differences)
    same_first = np.concatenate([score.same_top1 for score in first.scores])
    same_second = np.concatenate([score.same_top1 for score in second.scores])
    only_first = int(np.sum(same_first & ~same_second))
    only_second = int(np.sum(same_second & ~same_first))
    return Comparison(
        first=first.artifact.label,
        second=second.artifact.label,
        n_positions=same_first.size,
        kld_difference=difference,
        kld_se=error,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided probability of a split at least so uneven, if both were equally good."""
    n, least = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * sum(math.exp(value - n * math.log(2)) for value in logs))
