"""Whether an artifact says the same however its tokens come: step by step, in chunks, all at once, by turns with
another conversation, after one, or in a batch.

Each probe runs prompts once more and compares the logits with those of the prompts run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph.dtypes import Float32
from ..targets.target import Runner
from .metrics import FirstRows, Float64, LogitRows, blocks, position_kld

# Tokens of a prompt that are run whole; a longer one goes on from there, since its logits would be too large.
AT_ONCE = 640
# The probe that looks at the last position only.
LAST_ALONE = "at_once"
# Chunk sizes around the batch size that runtimes like, for a prompt that is longer than all of them.
LONG_CHUNKS = (511, 512, 513)
# Chunks that cross the window of a short convolution in every way; the rest of the prompt follows whole.
MIXED_CHUNKS = (1, 2, 3, 4, 1)
_SMALL_CHUNKS = (2, 3, 4)
_TURN = 3  # tokens of a conversation before it is the other's turn
# Of a prompt that is read in small pieces: a mixture reads experts anew for each of them, and what is right for so many
# steps is right for more, until the long chunks.
_STEPS = 32
# A prompt, its logits, and those again in pieces.
_Again = tuple[int, LogitRows, Iterable[Float32]]


@dataclass(frozen=True)
class Probe:
    """One way of running prompts again.

    Units: `max_abs` in logits, `kld` in nats, both the largest over all positions, and `kld_p90` what nine in ten are
    below; `prompt` (from a worker its place among the prompts of the check) and `position` say where the divergence is
    largest.
    """

    name: str
    max_abs: float
    kld: float
    prompt: int | str
    position: int
    kld_p90: float = 0.0


@dataclass(frozen=True)
class CacheCheck:
    """All probes that a runtime allows, and why it does not allow the others."""

    probes: tuple[Probe, ...]
    not_seen: tuple[str, ...] = ()


def check_cache(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    whole: Sequence[LogitRows],
    *,
    tell: Callable[[str], None] = lambda way: None,
) -> CacheCheck | None:
    """Runs prompts again in every way, of which `tell` hears; `whole` are their logits, each run whole, or of one that is
    long, `AT_ONCE` tokens at a time. None without prompts.
    """
    if not prompts:
        return None
    short = [i for i, ids in enumerate(prompts) if len(ids) <= sum(LONG_CHUNKS)] or [0]
    pair = short[:2] if len(short) > 1 else short * 2
    least = min(short, key=lambda i: len(prompts[i]))
    tell("stepwise")
    probes = [_worst("stepwise", [_beginning(runner, prompts, whole, least, 1)])]
    tell("chunked")
    probes.append(_worst("chunked", list(_chunked(runner, prompts, whole, least))))
    long = [i for i, ids in enumerate(prompts) if len(ids) > AT_ONCE]
    if long:
        tell("at once")
        runs = [(i, _LastRow(whole[i]), [runner.last_logits(prompts[i])[None]]) for i in long]
        probe = _worst(LAST_ALONE, runs)
        probes.append(replace(probe, position=len(prompts[int(probe.prompt)]) - 1))
    not_seen = []
    other = runner.another()
    if other is None:
        not_seen.append("interleaved: the runtime holds one conversation at a time")
    else:
        tell("interleaved")
        beginnings = [prompts[i][:_STEPS] for i in pair]
        rows = [FirstRows(whole[i], len(ids)) for i, ids in zip(pair, beginnings, strict=True)]
        probes.append(_worst("interleaved", zip(pair, rows, _interleaved(runner, other, beginnings), strict=True)))
    tell("reset")
    probes.append(_worst("reset", [(0, whole[0], [runner.logits(prompts[0])])]))
    for way in runner.batches:
        tell(f"batch_{way}")
        found = runner.batch([prompts[i] for i in pair], way)
        probes.append(_worst(f"batch_{way}", [(i, whole[i], [logits]) for i, logits in zip(pair, found, strict=True)]))
    if not runner.batches:
        not_seen.append("batch: the runtime takes one sequence at a time")
    return CacheCheck(tuple(probes), tuple(not_seen))


def _chunked(
    runner: Runner, prompts: Sequence[Sequence[int]], whole: Sequence[LogitRows], least: int
) -> Iterator[_Again]:
    """The shortest prompt in chunks of each small size, the others in mixed or long ones."""
    for size in _SMALL_CHUNKS:
        yield _beginning(runner, prompts, whole, least, size)
    for i, ids in enumerate(prompts):
        is_long = len(ids) > sum(LONG_CHUNKS)
        yield i, whole[i], _in_chunks(runner, ids, [*(LONG_CHUNKS if is_long else MIXED_CHUNKS), len(ids)])


def _beginning(
    runner: Runner, prompts: Sequence[Sequence[int]], whole: Sequence[LogitRows], which: int, size: int
) -> _Again:
    """The first steps of a prompt, so many tokens at a time."""
    ids = prompts[which][:_STEPS]
    return which, FirstRows(whole[which], len(ids)), _in_chunks(runner, ids, [size])


def _in_chunks(runner: Runner, token_ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Float32]:
    """Logits of a prompt read in chunks of these sizes, the last size again and again."""
    runner.reset()
    for chunk in _cut(token_ids, sizes):
        yield runner.extend(chunk)


def _cut(token_ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    low, number = 0, 0
    while low < len(token_ids):
        size = sizes[min(number, len(sizes) - 1)]
        yield token_ids[low : low + size]
        low, number = low + size, number + 1


def _interleaved(first: Runner, second: Runner, prompts: Sequence[Sequence[int]]) -> list[list[Float32]]:
    """Two prompts by turns, a few tokens each; the pieces of either."""
    runners = (first, second)
    pieces: list[list[Float32]] = [[], []]
    for runner in runners:
        runner.reset()
    for low in range(0, max(map(len, prompts)), _TURN):
        for runner, ids, found in zip(runners, prompts, pieces, strict=True):
            if chunk := ids[low : low + _TURN]:
                found.append(runner.extend(chunk))
    return pieces


class _LastRow:
    """The last row of logits."""

    def __init__(self, rows: LogitRows) -> None:
        self._rows = rows
        self.shape = (1, rows.shape[1])

    def __getitem__(self, rows: slice) -> Float32:
        n = self._rows.shape[0]
        return self._rows[n - 1 : n]


def _worst(name: str, runs: Iterable[_Again]) -> Probe:
    """The largest differences of prompts run again."""
    found = [_compared(*run) for run in runs]
    largest = [float(each.kld.max()) for each in found]
    worst = found[int(np.argmax(largest))]  # a NaN, if there is one
    return Probe(
        name,
        max_abs=float(np.max([each.max_abs for each in found])),
        kld=float(worst.kld.max()),
        prompt=worst.prompt,
        position=int(worst.kld.argmax()),
        kld_p90=float(np.percentile(np.concatenate([each.kld for each in found]), 90)),
    )


@dataclass(frozen=True)
class _Compared:
    """A prompt run again: the divergence of each position, and the largest difference of a logit."""

    prompt: int
    kld: Float64
    max_abs: float


def _compared(prompt: int, whole: LogitRows, pieces: Iterable[Float32]) -> _Compared:
    """One prompt whose logits come again in pieces, each compared with its rows and let go."""
    klds, largest, at = [], [], 0
    for piece in pieces:
        for rows in blocks(*piece.shape):
            before, again = whole[at + rows.start : at + rows.stop], piece[rows]
            klds.append(position_kld(before, again))
            largest.append(float(np.abs(before - again).max()))
        at += len(piece)
    return _Compared(prompt, np.concatenate(klds), float(np.max(largest)))
