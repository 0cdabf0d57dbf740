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
from .vectors import VectorMetrics

# A difference counts beyond this many standard errors.
_ERRORS = 2.0
_TOO_FEW = "one prompt tells no error of a difference: give two or more"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the second artifact differs from the first.

    `measure` is "kld", in nats, or of vectors "distance", one less the cosine; `difference` is positive if the second is
    further from the checkpoint. `only_first`, `only_second` count positions where one alone keeps the checkpoint's top token, or
    texts whose vectors the one has nearer; `p_value` is McNemar's, which of texts is that of the sign test.
    """

    first: str
    second: str
    measure: str = "kld"
    n_positions: int
    difference: float
    error: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def second_is_worse(self) -> bool:
        return self.difference > _ERRORS * self.error

    @property
    def sentence(self) -> str:
        if abs(self.difference) <= _ERRORS * self.error:
            return f"{self.first} and {self.second} cannot be told apart"
        further, nearer = (self.second, self.first) if self.difference > 0 else (self.first, self.second)
        return f"{further} is further from the checkpoint than {nearer}"

    @property
    def lines(self) -> tuple[str, ...]:
        """The numbers as a console shows them."""
        off = f"{self.difference:+.3g} ± {self.error:.2g}"
        counts = f"only the first, {self.only_second} only the second"
        if self.measure == "kld":
            return (
                f"{self.second} − {self.first}, {self.n_positions} positions",
                f"  mean KLD      {off} nats",
                f"  same top-1    {self.only_first} positions {counts} (McNemar p = {self.p_value:.2g})",
            )
        return (
            f"{self.second} − {self.first}, {self.n_positions} vectors",
            f"  mean 1 − cos  {off}",
            f"  nearer        {self.only_first} texts {counts} (sign test p = {self.p_value:.2g})",
        )

    def to_json(self) -> dict[str, Any]:
        found = {**asdict(self), "second_is_worse": self.second_is_worse}
        del found["measure"]
        named = {f"{self.measure}_difference": found.pop("difference"), f"{self.measure}_se": found.pop("error")}
        whole: dict[str, Any] = json_safe(found | named)
        return whole


def compare_results(first: ArtifactResult, second: ArtifactResult) -> Comparison:
    """Pairs the positions of two results of one validation; of prompts that one has room for a part of, the beginning.

    Raises: InputError if one of them has nothing to compare; UsageError for one prompt, which has no error.
    """
    for result in (first, second):
        measured = result.metrics or result.vectors
        if measured is None or not measured.finite:
            raise InputError(f"{result.artifact.label}: nothing to compare: {result.message or 'it was not run'}")
    if first.vectors and second.vectors:
        return _compared_vectors(first, first.vectors, second, second.vectors)
    if len(first.scores) < 2:
        raise UsageError(_TOO_FEW)
    pairs = [(a, b, min(a.kld.size, b.kld.size)) for a, b in zip(first.scores, second.scores, strict=True)]
    difference, error = mean_and_error([b.kld[:n] - a.kld[:n] for a, b, n in pairs])
    same_first = np.concatenate([a.same_top1[:n] for a, _, n in pairs])
    same_second = np.concatenate([b.same_top1[:n] for _, b, n in pairs])
    only_first = int(np.sum(same_first & ~same_second))
    only_second = int(np.sum(same_second & ~same_first))
    return Comparison(
        first=first.artifact.label,
        second=second.artifact.label,
        n_positions=same_first.size,
        difference=difference,
        error=error,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def _compared_vectors(first: ArtifactResult, a: VectorMetrics, second: ArtifactResult, b: VectorMetrics) -> Comparison:
    if len(a.prompts) < 2:
        raise UsageError(_TOO_FEW)
    off = [x.cosine - y.cosine for x, y in zip(a.prompts, b.prompts, strict=True)]
    weighed = [np.full(x.n_vectors, each) for x, each in zip(a.prompts, off, strict=True)]
    difference, error = mean_and_error(weighed)
    only_first, only_second = sum(each > 0 for each in off), sum(each < 0 for each in off)
    return Comparison(
        first=first.artifact.label,
        second=second.artifact.label,
        measure="distance",
        n_positions=a.n_vectors,
        difference=difference,
        error=error,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided probability of a split at least so uneven, if both were equally good."""
    n, least = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * sum(math.exp(value - n * math.log(2)) for value in logs))
