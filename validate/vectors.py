"""How far an artifact's vectors are from the reference's, and whether texts stand as near to each other by them.

A vector's divergence is one less the cosine, which grows with the square of the noise as the divergence of logits does;
its length says nothing. Two texts of one vector each are as near as their cosine; of a vector for each token, as near
as each token of the one is to its nearest of the other, on average.
Source: Khattab and Zaharia 2020 (late interaction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..graph.dtypes import Float32
from ..graph.errors import InputError
from ..graph.reference.forward import unit_vectors
from .metrics import Float64, LogitRows, json_safe, mean_and_error
from .prompts import EncodedPrompt

_N_WORST = 8
# Fewer texts have no order that could be another.
_LEAST_TEXTS = 3


@dataclass(frozen=True)
class VectorScore:
    """One prompt: the divergence of each of its vectors, and the vectors themselves. Shapes: [m]; [m, D], of length one."""

    id: str
    divergence: Float64
    finite: bool
    reference: Float32
    artifact: Float32

    def first(self, n: int) -> VectorScore:
        """The same of its first n vectors."""
        return replace(self, divergence=self.divergence[:n])


@dataclass(frozen=True)
class PromptCosine:
    """One prompt: the mean cosine of its vectors, and how alike the others are ordered by their nearness to it."""

    prompt: str
    n_vectors: int
    cosine: float
    ranks: float


@dataclass(frozen=True, kw_only=True)
class VectorMetrics:
    """An artifact's vectors in numbers.

    `cosine_*` are between each vector and the reference's, `distance_*` what they are less than one; `cosine_se` is a
    standard error over prompts. `ranks_mean` and `ranks_min` are Spearman's correlations of the orders in which the other prompts
    stand by their nearness to each, `same_nearest` is the share of prompts whose nearest is the same; NaN for fewer
    than three prompts.
    """

    n_prompts: int
    n_vectors: int
    finite: bool
    cosine_mean: float
    cosine_se: float
    cosine_min: float
    distance_median: float
    distance_p99: float
    ranks_mean: float
    ranks_min: float
    same_nearest: float
    prompts: tuple[PromptCosine, ...]

    @property
    def worst(self) -> tuple[PromptCosine, ...]:
        """The prompts with the lowest cosines."""
        return tuple(sorted(self.prompts, key=lambda prompt: prompt.cosine)[:_N_WORST])

    @property
    def mean(self) -> float:
        """The mean divergence."""
        return 1 - self.cosine_mean

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON has them: numbers that are not finite are null."""
        found: dict[str, Any] = json_safe(asdict(self))
        return found


def vector_distances(reference: LogitRows, artifact: LogitRows) -> Float64:
    """One less the cosine of each pair of vectors. Shapes: both [m, D]; returns [m]."""
    n = reference.shape[0]
    a, b = (np.asarray(rows[0:n], np.float64) for rows in (reference, artifact))
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found: Float64 = 1 - np.einsum("ij,ij->i", a, b) / np.where(lengths == 0, 1, lengths)
    return np.maximum(found, 0)  # of two equal vectors rounding can leave -1e-16


def score_vectors(prompt: EncodedPrompt, reference: LogitRows, artifact: LogitRows) -> VectorScore:
    """Compares the vectors [m, D] of a prompt. Raises: InputError if they are not as many, or of another size."""
    if artifact.shape != reference.shape:
        raise InputError(
            f"prompt '{prompt.id}' of {len(prompt.token_ids)} tokens: vectors {list(artifact.shape)} cannot be "
            f"compared with {list(reference.shape)}"
        )
    n = reference.shape[0]
    right, found = np.asarray(reference[0:n], np.float32), np.asarray(artifact[0:n], np.float32)
    is_finite = bool(np.isfinite(right).all() and np.isfinite(found).all())
    with np.errstate(invalid="ignore", over="ignore"):
        units = unit_vectors(right), unit_vectors(found)
    return VectorScore(prompt.id, vector_distances(right, found), is_finite, *units)


def summarize_vectors(scores: Sequence[VectorScore]) -> VectorMetrics:
    """The metrics of all prompts together: every vector weighs the same."""
    if not scores:
        raise ValueError("metrics of zero prompts")
    distances = np.concatenate([score.divergence for score in scores])
    mean, error = mean_and_error([score.divergence for score in scores])
    ranks, nearest = _orders(scores)
    each = [
        PromptCosine(score.id, len(score.divergence), 1 - float(score.divergence.mean()), float(rank))
        for score, rank in zip(scores, ranks, strict=True)
    ]
    return VectorMetrics(
        n_prompts=len(scores),
        n_vectors=distances.size,
        finite=all(score.finite for score in scores),
        cosine_mean=1 - mean,
        cosine_se=error,
        cosine_min=1 - float(distances.max()),
        distance_median=float(np.median(distances)),
        distance_p99=float(np.percentile(distances, 99)),
        ranks_mean=float(ranks.mean()),
        ranks_min=float(ranks.min()),
        same_nearest=float(nearest.mean()),
        prompts=tuple(each),
    )


def _orders(scores: Sequence[VectorScore]) -> tuple[Float64, Float64]:
    """Of each prompt how its order of the others agrees, and whether its nearest is the same."""
    n = len(scores)
    if n < _LEAST_TEXTS or not all(score.finite for score in scores):
        return np.full(n, np.nan), np.full(n, np.nan)
    right, found = (nearness(each) for each in _sides(scores))
    orders = [
        (_ranks(np.delete(a, i)), _ranks(np.delete(b, i))) for i, (a, b) in enumerate(zip(right, found, strict=True))
    ]
    ranks = [1 - 6 * float(((a - b) ** 2).sum()) / ((n - 1) * ((n - 1) ** 2 - 1)) for a, b in orders]
    nearest = [float(a.argmax() == b.argmax()) for a, b in orders]
    return np.array(ranks), np.array(nearest)


def _ranks(values: Float64) -> Float64:
    """The place of each value in their order."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)


def nearness(texts: Sequence[Float32]) -> Float64:
    """How near each text, of vectors of length one, is to each other. Shapes: [m, D] each; returns [n, n]."""
    ends = np.cumsum([0, *(len(text) for text in texts)])
    every = np.concatenate(texts).astype(np.float64)
    rows = [np.maximum.reduceat(text @ every.T, ends[:-1], axis=1).mean(axis=0) for text in texts]
    return np.stack(rows)


def nearness_moved(scores: Sequence[VectorScore]) -> float:
    """The most that any two texts are nearer, or less near, by the artifact's vectors than by the reference's."""
    right, found = (nearness(each) for each in _sides(scores))
    return float(np.abs(right - found).max())


def exchanged(scores: Sequence[VectorScore], *, tie: float) -> tuple[float, str]:
    """The share of pairs of texts that stand the other way round beside a third, though by the reference one of them is
    nearer by more than a tie; and the text beside which most do.
    """
    right, found = (nearness(each) for each in _sides(scores))
    n = len(scores)
    shares = np.zeros(n)
    for i in range(n):
        a, b = np.delete(right[i], i), np.delete(found[i], i)
        leads = a[:, None] - a
        n_pairs = (n - 1) * (n - 2) / 2
        shares[i] = np.sum((leads > tie) & (b[:, None] < b)) / max(1.0, n_pairs)
    worst = int(shares.argmax())
    return float(shares.mean()), scores[worst].id if shares[worst] else ""


def _sides(scores: Sequence[VectorScore]) -> tuple[list[Float32], list[Float32]]:
    return [score.reference for score in scores], [score.artifact for score in scores]
