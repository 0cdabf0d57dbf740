"""How far an artifact's logits are from the reference's, teacher-forced: both see the same tokens.

Source: llama.cpp `perplexity --kl-divergence` for the choice of numbers; here in float64 on float32
logits without its 16-bit store, and with errors over prompts, since positions of one prompt are
correlated and an error over positions is several times too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.errors import InputError
from .prompts import EncodedPrompt

Float64 = NDArray[np.float64]

# Elements of [rows, V] handled at a time: 2 MiB in float64, which stay near the core.
_BLOCK_ELEMENTS = 1 << 18
_TOP = 5
_STRETCH = 256  # of a row of logits
_N_WORST = 8
# Bins of the distribution of divergences, half a decade each: 1e-12 … 100 nats.
BIN_EXPONENTS = tuple(e / 2 for e in range(-24, 5))


@dataclass(frozen=True)
class PromptScore:
    """One prompt by scored position, of which `start` is the first.

    Shapes: [n]; [2, n] for `top`, the likeliest token of the reference and of the artifact; [n - 1] for `log_prob_loss` and `prob_change` if the last position has no next token.
    Units: nats; `prob_change` is the next token's probability, the artifact's less the reference's; `lead` is the
    reference's logit of its own top token less that of the artifact's, 0 where both are one.
    """

    id: str
    kld: Float64
    same_top1: NDArray[np.bool_]
    top5_overlap: Float64
    log_prob_loss: Float64
    prob_change: Float64
    top: NDArray[np.int64]
    max_abs_logit: float
    finite: bool
    lead: Float64
    start: int = 0

    @property
    def divergence(self) -> Float64:
        """What is judged: the KL divergence."""
        return self.kld

    def first(self, n: int) -> PromptScore:
        """The same of its first n positions, of which the divergence alone is asked for."""
        return replace(self, kld=self.kld[:n])


@dataclass(frozen=True)
class Worst:
    """The position of a prompt where the artifact is furthest off. Units: nats.

    `token` was read there; `reference_top` and `artifact_top` are what each would have said next.
    """

    prompt: str
    position: int
    token: int
    kld: float
    reference_top: int = -1
    artifact_top: int = -1


@dataclass(frozen=True)
class PromptMean:
    """One prompt in a few numbers, for paired comparison with another run. Units: nats; a fraction."""

    prompt: str
    n_positions: int
    kld_mean: float
    same_top1: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """An artifact in numbers.

    Units: `kld_*` in nats; `same_top1`, `top5_overlap`, `prob_change_*` fractions; `ppl_ratio` is the artifact's
    perplexity over the reference's; `max_abs_logit` in logits. `*_se` are standard errors over prompts.
    `n_ties` counts positions where another token was chosen only by rounding: the reference's led by less than that.
    `distribution` counts positions by `BIN_EXPONENTS`: below the first, between each two, above the last.
    NaN where the logits do not define a number.
    """

    n_prompts: int
    n_positions: int
    finite: bool
    kld_mean: float
    kld_se: float
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top1: float
    same_top1_se: float
    top5_overlap: float
    ppl_ratio: float
    ppl_ratio_se: float
    prob_change_mean: float
    prob_change_rms: float
    max_abs_logit: float
    worst: tuple[Worst, ...]
    n_ties: int = 0
    distribution: tuple[int, ...] = ()
    prompts: tuple[PromptMean, ...] = ()

    @property
    def mean(self) -> float:
        """The mean divergence."""
        return self.kld_mean

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON has them: numbers that are not finite are null."""
        found: dict[str, Any] = json_safe(asdict(self))
        return found


def json_safe(value: Any) -> Any:
    """The same value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


class LogitRows(Protocol):
    """Logits [n, V] that need not be in memory whole: an array, or `graph.reference.Logits`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Float32: ...


class FirstRows:
    """The first n rows of logits."""

    def __init__(self, rows: LogitRows, n: int) -> None:
        self._rows = rows
        self.shape = (n, rows.shape[1])

    def __getitem__(self, rows: slice, /) -> Float32:
        start, stop, _ = rows.indices(self.shape[0])
        return self._rows[start:stop]


def blocks(n_rows: int, vocab_size: int, *, start: int = 0) -> list[slice]:
    """Rows start … n_rows - 1 in pieces that are small beside whole logits."""
    step = max(1, _BLOCK_ELEMENTS // vocab_size)
    return [slice(low, min(low + step, n_rows)) for low in range(start, n_rows, step)]


def position_kld(reference: LogitRows, artifact: LogitRows) -> Float64:
    """KL divergence of the artifact's distributions from the reference's. Shapes: both [n, V]; returns [n]."""
    found = np.zeros(reference.shape[0])
    for rows in blocks(*reference.shape):
        found[rows] = _Pair.of(reference[rows], artifact[rows]).kld
    return found


def score_prompt(prompt: EncodedPrompt, reference: LogitRows, artifact: LogitRows) -> PromptScore:
    """Compares two logit arrays [n, V] of a prompt's n tokens at its scored positions, some rows at a time.

    Raises: InputError if they are not about the same tokens and vocabulary.
    """
    n, vocab_size = reference.shape
    if artifact.shape != reference.shape or n != len(prompt.token_ids):
        raise InputError(
            f"prompt '{prompt.id}' of {len(prompt.token_ids)} tokens: logits {list(artifact.shape)} cannot be "
            f"compared with {list(reference.shape)}"
        )
    first, last = prompt.scored or (0, n)
    following = np.asarray(prompt.token_ids[1 : last + 1], np.int64)
    found = [
        _score_rows(prompt.id, reference[rows], artifact[rows], following[rows])
        for rows in blocks(last, vocab_size, start=first)
    ]
    return PromptScore(
        id=prompt.id,
        kld=np.concatenate([b.kld for b in found]),
        same_top1=np.concatenate([b.same_top1 for b in found]),
        top5_overlap=np.concatenate([b.top5_overlap for b in found]),
        log_prob_loss=np.concatenate([b.log_prob_loss for b in found]),
        prob_change=np.concatenate([b.prob_change for b in found]),
        top=np.concatenate([b.top for b in found], axis=1),
        max_abs_logit=float(np.max([b.max_abs_logit for b in found])),
        finite=all(b.finite for b in found),
        lead=np.concatenate([b.lead for b in found]),
        start=first,
    )


def _score_rows(prompt_id: str, reference: Float32, artifact: Float32, following: NDArray[np.int64]) -> PromptScore:
    """One block of rows; `following` holds the next token of each, but for a prompt's last."""
    rows = np.arange(len(reference))
    first, chosen = reference.argmax(axis=1), artifact.argmax(axis=1)
    lead = reference[rows, first] - reference[rows, chosen]
    pair = _Pair.of(reference, artifact)
    with np.errstate(invalid="ignore", over="ignore"):
        at = (rows[: len(following)], following)
        log_p, log_q = pair.log_p(reference[at]), pair.log_q(artifact[at])
        return PromptScore(
            id=prompt_id,
            kld=pair.kld,
            # any of several tokens that tie for the reference's top is the same choice
            same_top1=lead == 0,
            top5_overlap=_top_overlap(reference, artifact),
            log_prob_loss=log_p - log_q,
            prob_change=np.exp(log_q) - np.exp(log_p),
            top=np.stack([first, chosen]),
            max_abs_logit=float(np.abs(reference - artifact).max()),
            finite=bool(np.isfinite(artifact).all() and np.isfinite(reference).all()),
            lead=lead.astype(np.float64),
        )


@dataclass(frozen=True)
class _Pair:
    """Rows of logits p and q as distributions. Shapes: all [n]; `top_*` is the largest logit, `log_sum_*` the logarithm
    of the sum of exponentials below it. Units: nats.
    """

    kld: Float64
    top_p: Float64
    top_q: Float64
    log_sum_p: Float64
    log_sum_q: Float64

    @classmethod
    def of(cls, reference: Float32, artifact: Float32) -> _Pair:
        """Exponentials are most of what a comparison costs: two for each pair of logits, none twice."""
        p, q = reference.astype(np.float64), artifact.astype(np.float64)
        top_p, top_q = p.max(axis=1), q.max(axis=1)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            p -= top_p[:, None]
            q -= top_q[:, None]
            apart = p - q
            np.exp(p, out=p)
            np.exp(q, out=q)
            sum_p, sum_q = p.sum(axis=1), q.sum(axis=1)
            log_sum_p, log_sum_q = np.log(sum_p), np.log(sum_q)
            kld = np.einsum("ij,ij->i", p, apart) / sum_p + (log_sum_q - log_sum_p)
            # rounding can leave a sum of -1e-17, which no divergence is
            return cls(np.maximum(kld, 0.0), top_p, top_q, log_sum_p, log_sum_q)

    def log_p(self, logits: Float32) -> Float64:
        """Log probabilities of the reference's logits [m], one of each of the first m rows."""
        n = len(logits)
        found: Float64 = logits - self.top_p[:n] - self.log_sum_p[:n]
        return found

    def log_q(self, logits: Float32) -> Float64:
        """The same of the artifact's."""
        n = len(logits)
        found: Float64 = logits - self.top_q[:n] - self.log_sum_q[:n]
        return found


def _top_overlap(reference: Float32, artifact: Float32) -> Float64:
    """The share of the reference's top tokens that are among the artifact's. Shape: [n]."""
    shares = [
        len(np.intersect1d(_top(p), _top(q))) / min(_TOP, len(p)) for p, q in zip(reference, artifact, strict=True)
    ]
    return np.array(shares, np.float64)


def _top(logits: Float32) -> NDArray[np.int64]:
    """The tokens of the largest logits of a row [V]. Only what is as large as the largest of some stretches is sorted."""
    n_stretches = len(logits) // _STRETCH
    least = -np.inf
    if n_stretches >= _TOP:
        largest = logits[: n_stretches * _STRETCH].reshape(n_stretches, _STRETCH).max(axis=1)
        least = np.partition(largest, -_TOP)[-_TOP]
    found = np.flatnonzero(logits >= least) if least == least else np.arange(len(logits))
    if len(found) <= _TOP:
        return found
    return found[np.argpartition(-logits[found], _TOP - 1)[:_TOP]]


def summarize(scores: Sequence[PromptScore], prompts: Sequence[EncodedPrompt] = (), *, tie: float = 0.0) -> Metrics:
    """The metrics of all prompts together: every position weighs the same.

    `prompts` are those that were scored, in the same order, for the tokens that `worst` names. `tie` is a lead in
    logits that rounding can turn over.
    """
    if not scores:
        raise ValueError("metrics of zero prompts")
    kld = np.concatenate([score.kld for score in scores])
    change = np.concatenate([score.prob_change for score in scores])
    with np.errstate(invalid="ignore", over="ignore"):
        median, p99, p999 = (float(q) for q in np.percentile(kld, (50, 99, 99.9)))
        loss, loss_se = mean_and_error([score.log_prob_loss for score in scores])
        kld_mean, kld_se = mean_and_error([score.kld for score in scores])
        same, same_se = mean_and_error([score.same_top1 for score in scores])
        return Metrics(
            n_prompts=len(scores),
            n_positions=kld.size,
            finite=all(score.finite for score in scores),
            kld_mean=kld_mean,
            kld_se=kld_se,
            kld_median=median,
            kld_p99=p99,
            kld_p999=p999,
            kld_max=float(kld.max()),
            same_top1=same,
            same_top1_se=same_se,
            n_ties=sum(int(np.sum(~s.same_top1 & (s.lead <= tie))) for s in scores),
            top5_overlap=float(np.concatenate([s.top5_overlap for s in scores]).mean()),
            ppl_ratio=float(np.exp(loss)),
            ppl_ratio_se=float(np.exp(loss) * loss_se),
            prob_change_mean=float(change.mean()) if change.size else math.nan,
            prob_change_rms=float(np.sqrt((change**2).mean())) if change.size else math.nan,
            max_abs_logit=float(np.max([s.max_abs_logit for s in scores])),
            worst=_worst(scores, prompts),
            distribution=_distribution(kld),
            prompts=tuple(PromptMean(s.id, s.kld.size, float(s.kld.mean()), float(s.same_top1.mean())) for s in scores),
        )


def _worst(scores: Sequence[PromptScore], prompts: Sequence[EncodedPrompt]) -> tuple[Worst, ...]:
    tokens = {prompt.id: prompt.token_ids for prompt in prompts}
    found = []
    for score in scores:
        at = int(score.kld.argmax())  # of a NaN, if there is one
        position = score.start + at
        token = tokens[score.id][position] if score.id in tokens else -1
        first, second = score.top[:, at].tolist()
        found.append(Worst(score.id, position, token, float(score.kld[at]), first, second))
    found.sort(key=lambda worst: -worst.kld if worst.kld == worst.kld else -math.inf)
    return tuple(found[:_N_WORST])


def _distribution(kld: Float64) -> tuple[int, ...]:
    with np.errstate(divide="ignore", invalid="ignore"):
        bins = np.searchsorted(BIN_EXPONENTS, np.log10(kld[np.isfinite(kld)]), side="right")
    return tuple(np.bincount(bins, minlength=len(BIN_EXPONENTS) + 1).tolist())


def mean_and_error(groups: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Mean over all values, and its standard error with the groups (prompts) as the independent draws.

    NaN for no values; the error of a single group is NaN.
    Source: the linearised variance of a ratio estimator (Cochran, Sampling Techniques, §6.3).
    """
    filled = [group for group in groups if group.size]
    total = sum(group.size for group in filled)
    if not total:
        return math.nan, math.nan
    mean = float(np.concatenate(filled).mean())
    n = len(filled)
    if n < 2:
        return mean, math.nan
    deviations = [group.size / total * (float(group.mean()) - mean) for group in filled]
    return mean, math.sqrt(n / (n - 1) * sum(d * d for d in deviations))
