"""Which choice each group of weights gets, so that the loss of all is least within a size.

That is a knapsack in which exactly one item of each group is packed. Groups are added one by one to a list of packings
none of which is both larger and worse than another, and a packing is dropped once even the best use of what room is left,
with groups cut into fractions, cannot bring it below a packing that is known. That is exact; if a list grows beyond
`MOST`, the least loss of each range of sizes stays, so that a result may miss the best by very little, never the size.
Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11 (multiple choice: linear relaxation, dynamic
programming with bounds).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MOST = 2048  # packings that are held
_ROUNDING = 1e-12  # of a sum of losses, relatively: bounds are sums of the same numbers in another order


@dataclass(frozen=True)
class Group:
    """What is stored alike: bytes and loss of each choice, which is infinite of one that must not be made.

    Units: bytes, nats a token.
    """

    sizes: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Choices:
    """The choices of a group that are worth their size, smallest first; `index` is their place in the group."""

    index: Int64
    sizes: Int64
    losses: Float64


def least_bytes(groups: Sequence[Group]) -> int:
    """The bytes of the smallest packing there is."""
    return sum(int(_worth_their_size(group).sizes[0]) for group in groups)


def solve(groups: Sequence[Group], max_bytes: int) -> tuple[int, ...]:
    """The choice of each group: together within `max_bytes`, with the least loss; of equals always the same ones.

    Raises: ValueError if not even the smallest packing fits.
    """
    if least_bytes(groups) > max_bytes:
        raise ValueError(f"at least {least_bytes(groups)} bytes are needed: found room for {max_bytes}")
    choices = [_worth_their_size(group) for group in groups]
    # Large steps first: what is left for the end fills small rooms.
    order = sorted(range(len(choices)), key=lambda i: (-int(np.ptp(choices[i].sizes)), i))
    found = _pack([choices[i] for i in order], max_bytes)
    packed = dict(zip(order, found, strict=True))
    return tuple(int(choices[i].index[packed[i]]) for i in range(len(choices)))


def total(groups: Sequence[Group], packed: Sequence[int]) -> tuple[int, float]:
    """Bytes and loss of a packing."""
    chosen = list(zip(groups, packed, strict=True))
    return sum(group.sizes[i] for group, i in chosen), sum(group.losses[i] for group, i in chosen)


def _worth_their_size(group: Group) -> _Choices:
    finite = (i for i, loss in enumerate(group.losses) if math.isfinite(loss))
    order = sorted(finite, key=lambda i: (group.sizes[i], group.losses[i], i))
    kept: list[int] = []
    for i in order:
        if not kept or group.losses[i] < group.losses[kept[-1]]:
            kept.append(i)
    sizes, losses = ([values[i] for i in kept] for values in (group.sizes, group.losses))
    return _Choices(np.array(kept), np.array(sizes, np.int64), np.array(losses, np.float64))


@dataclass(frozen=True)
class _Step:
    """From one corner of a group's lower convex hull to the next, `end`: what it costs and what it saves."""

    group: int
    end: int
    n_bytes: int
    change: float

    @property
    def key(self) -> tuple[float, int, int]:
        """Those that save most a byte come first; those of a group in their order."""
        return self.change / self.n_bytes, self.group, self.end


class _Relaxed:
    """The least loss within a size, could choices be cut: from the smallest on, the best steps first.

    It is known of the groups from any one on, since the last are those that a packing still lacks.
    """

    def __init__(self, groups: Sequence[_Choices]) -> None:
        self.steps = sorted((step for i, group in enumerate(groups) for step in _steps(i, group)), key=lambda s: s.key)
        self._owners = np.array([step.group for step in self.steps], np.int64)
        self._changes = np.array([(step.n_bytes, step.change) for step in self.steps]).reshape(-1, 2)
        smallest = np.array([(group.sizes[0], group.losses[0]) for group in groups], np.float64).reshape(-1, 2)
        self._smallest = np.concatenate([np.cumsum(smallest[::-1], axis=0)[::-1], np.zeros((1, 2))])

    def bound(self, first: int, room: Float64) -> Float64:
        """The least loss of the groups from `first` on within each size; infinity where nothing fits."""
        corners = np.concatenate([self._smallest[first : first + 1], self._changes[self._owners >= first]])
        sizes, losses = np.cumsum(corners, axis=0).T
        bound: Float64 = np.interp(room, sizes, losses)
        return np.where(room < sizes[0], np.inf, bound)


def _steps(number: int, group: _Choices) -> list[_Step]:
    corners: list[int] = []
    for i in range(len(group.sizes)):
        while len(corners) > 1 and _slope(group, corners[-1], i) <= _slope(group, corners[-2], corners[-1]):
            corners.pop()
        corners.append(i)
    return [
        _Step(number, b, int(group.sizes[b] - group.sizes[a]), float(group.losses[b] - group.losses[a]))
        for a, b in itertools.pairwise(corners)
    ]


def _slope(group: _Choices, a: int, b: int) -> float:
    return float((group.losses[b] - group.losses[a]) / (group.sizes[b] - group.sizes[a]))


def _greedy(groups: Sequence[_Choices], relaxed: _Relaxed, max_bytes: int) -> list[int]:
    """Steps in their order as long as they fit; after one that does not, others of its group are not taken."""
    packed, room = [0] * len(groups), max_bytes - sum(int(group.sizes[0]) for group in groups)
    closed: set[int] = set()
    for step in relaxed.steps:
        if step.group not in closed and step.n_bytes <= room:
            packed[step.group], room = step.end, room - step.n_bytes
        else:
            closed.add(step.group)
    return packed


def _pack(groups: Sequence[_Choices], max_bytes: int) -> list[int]:
    """The choices of the best packing; see the module. `groups` are in the order in which they are added."""
    relaxed = _Relaxed(groups)
    known = _greedy(groups, relaxed, max_bytes)
    most = float(sum(group.losses[i] for group, i in zip(groups, known, strict=True)))
    most += abs(most) * _ROUNDING
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[Int64, Int64]] = []
    for number, group in enumerate(groups):
        all_sizes = (sizes[:, None] + group.sizes).ravel()
        all_losses = (losses[:, None] + group.losses).ravel()
        bound = all_losses + relaxed.bound(number + 1, (max_bytes - all_sizes).astype(np.float64))
        open_ = np.flatnonzero(bound <= most)
        kept = open_[_undominated(all_sizes[open_], all_losses[open_])]
        trail.append((kept // len(group.sizes), kept % len(group.sizes)))
        sizes, losses = all_sizes[kept], all_losses[kept]
    if not len(losses) or losses.min() >= most:
        return known
    at, packed = int(losses.argmin()), []
    for parents, chosen in reversed(trail):
        packed.append(int(chosen[at]))
        at = int(parents[at])
    return packed[::-1]


def _undominated(sizes: Int64, losses: Float64) -> Int64:
    """Of packings those that no other is both smaller and better than, by size; of too many some of every size."""
    order = np.lexsort((losses, sizes))
    before = np.minimum.accumulate(np.concatenate([[np.inf], losses[order][:-1]]))
    kept: Int64 = order[losses[order] < before]
    if len(kept) <= MOST:
        return kept
    spread = sizes[kept]
    buckets = (spread - spread[0]) * MOST // (spread[-1] - spread[0] + 1)
    last = np.flatnonzero(np.diff(buckets, append=-1))  # losses fall with sizes
    return kept[last]
