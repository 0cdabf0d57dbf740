"""The residual streams of a text, as the checkpoint has it and behind quantised layers, and what matrices meet in them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ...graph.blocks import Branch
from ...graph.dtypes import Float32
from ...graph.graph import Layer, Weight, WeightGraph
from ...graph.reference.feed_forward import Routing
from ...graph.reference.forward import Forward
from ...graph.reference.state import State
from ...graph.roles import EXPERTS, Address, Role
from ..encoding import Encoding
from ..rounded import in_int8
from ..stored import EncodedTensor
from ..together import Together, together
from .memory import Scratch
from .store import Store

# One matrix of a stack, or the only one.
Slice = tuple[Address, int]
# Weights with the same inputs.
Stage = tuple[Address, ...]


class Ending(NamedTuple):
    """A matrix whose product is what a branch's block gives, and its bias if it has one."""

    role: Role
    bias: Role | None


@dataclass(frozen=True)
class Course:
    """The matrices of a branch in the order in which they are used, and what it ends with, if that is one of them."""

    stages: tuple[Stage, ...]
    ending: Ending | None

    def ending_of(self, stage: Stage) -> Ending | None:
        """What the branch ends with if it is this stage, behind which nothing else is to be run."""
        return self.ending if self.ending is not None and [role for role, _ in stage] == [self.ending.role] else None


class Inputs(NamedTuple):
    """What a matrix meets in a batch: [n, n_cols], the same tokens in both; what it gives of their difference [n, rows],
    where that is asked for.
    """

    quantised: Float32
    floats: Float32
    drifted: Float32 | None = None


class _Enough(Exception):
    """All that was wanted of a branch has been seen."""


class _Watched(Forward):
    """A forward pass whose inputs of some weights are kept, and which may be told the experts to run."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph, keep_bytes=0)
        self.wanted: frozenset[Address] = frozenset()
        self.seen: dict[Slice, Float32] = {}
        self.routing: Routing | None = None
        # Weights whose kernels take activations in 8 bits, token by token, while the quantised stream runs.
        self.rounded: Container[Address] = ()

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        if weight.address in self.rounded:
            x = in_int8(x)
        if weight.address in self.wanted:
            self.seen[weight.address, rows.get("expert") or 0] = x
            if weight.role not in EXPERTS and len(self.seen) == len(self.wanted):
                raise _Enough
        return super().linear(x, weight, bias, **rows)

    def route(self, *arguments: Any) -> Routing:
        return super().route(*arguments) if self.routing is None else self.routing


class Streams:
    """Both streams [tokens, H] of chunks of token ids, each chunk by itself.

    Behind the last matrix of a branch the floats go on at once, and the inputs that it has in the quantised stream wait
    for its codes: no product is computed twice.
    """

    def __init__(
        self,
        graph: WeightGraph,
        chunks: Sequence[Sequence[int]],
        *,
        scratch: Scratch,
        chosen: Mapping[Address, Encoding],
        table: EncodedTensor | None,
    ) -> None:
        """`chosen` is what weights will be stored as, `table` the embedding if it is tuned. Raises: as `Forward.states`."""
        self._forward = _Watched(graph)
        # A whole row with one scale is part of the format; smaller blocks are what some kernels do, and others do not.
        self._rounded = {a for a, encoding in chosen.items() if encoding.activation_block == 0}
        stock = chosen.get((Role.EMBED, None))
        looked_up = None if table is None else Forward(graph.with_weights({(Role.EMBED, None): table}), keep_bytes=0)
        self._batches = together(chunks)
        self._n_tokens, self._scratch = sum(map(len, chunks)), scratch
        shape = self._n_tokens, graph.config.hidden_size
        self._floats, self._quantised = (scratch.stream(name, shape) for name in ("floats", "quantised"))
        self._waiting: tuple[Ending, Float32] | None = None
        for part in self._batches:
            self._floats[part.rows] = embedded = self._forward.embedded(part.chunks)
            if looked_up is not None:
                self._quantised[part.rows] = looked_up.embedded(part.chunks)
            else:
                self._quantised[part.rows] = embedded if stock is None else _rounded(embedded, part.ids, stock)

    def course(self, branch: Branch, layer: Layer) -> Course:
        """Which matrices of a branch have the same inputs, as the first tokens show."""
        calls: list[tuple[Weight, Weight | None, Float32, Float32]] = []
        ends: list[bool] = []

        class Listening(_Watched):
            def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
                out = super().linear(x, weight, bias, **rows)
                calls.append((weight, bias, x, out))
                return out

            def behind(self, branch: Branch, layer: Layer, out: Float32) -> Float32:
                ends.append(out is calls[-1][3])
                return super().behind(branch, layer, out)

        start = Together([self._batches[0].chunks[0][:16]], 0, 0)
        Listening(self._forward.graph).branch(branch, layer, self._floats[: len(start.chunks[0])], start.batch())
        found: list[list[Address]] = []
        inputs: list[list[Float32]] = []
        for weight, _, x, _ in calls:
            address = weight.address
            known = next((i for i, group in enumerate(found) if address in group), None)
            if known is None:
                known = next((i for i, xs in enumerate(inputs) if any(x is other for other in xs)), None)
            if known is None:
                found.append([address])
                inputs.append([x])
                continue
            inputs[known].append(x)
            if address not in found[known]:
                found[known].append(address)
        weight, bias, *_ = calls[-1]
        ending = Ending(weight.role, None if bias is None else bias.role) if ends == [True] else None
        return Course(tuple(map(tuple, found)), ending)

    def inputs(
        self, branch: Branch, layer: Layer, tuned: Layer, stage: Stage, ending: Ending | None
    ) -> Iterator[dict[Slice, Inputs]]:
        """What the first of some weights with the same inputs meets, batch by batch; `tuned` is the layer as far as it is
        quantised. Experts of both streams are those that the quantised stream chooses. Of a branch's ending, which is to
        be asked for once, the floats go on from there.
        """
        first = stage[0]
        for part in self._batches:
            self._forward.rounded = self._rounded
            quantised = self._watch(branch, tuned, self._quantised, part, first, None)
            self._forward.rounded = ()
            routing = self._forward.routings.get(layer.index) if first[0] in EXPERTS else None
            floats = self._watch(branch, layer, self._floats, part, first, routing)
            if ending is not None:
                self._finish(branch, layer, self._floats, part, floats[first, 0], ending)
                self._wait(part, quantised[first, 0], ending)
            yield {which: Inputs(x, floats[which]) for which, x in quantised.items()}

    def drifted(self, weight: Weight, x: Inputs) -> Inputs:
        """Inputs with what the weight as the checkpoint has it gives of their difference."""
        return x._replace(drifted=self._forward.linear(x.floats - x.quantised, weight))

    def advance(self, branch: Branch, layer: Layer, tuned: Layer) -> None:
        """Both streams through a branch, or through what is left of it once the inputs of its ending are known."""
        waiting, self._waiting = self._waiting, None
        for part in self._batches:
            if waiting is not None:
                ending, inputs = waiting
                self._finish(branch, tuned, self._quantised, part, inputs[part.rows], ending)
                continue
            for stream, one, rounded in ((self._floats, layer, ()), (self._quantised, tuned, self._rounded)):
                self._forward.rounded = rounded
                stream[part.rows] += self._forward.branch(branch, one, stream[part.rows], part.batch())
        self._forward.rounded = ()

    def _wait(self, part: Together, inputs: Float32, ending: Ending) -> None:
        if self._waiting is None:
            self._waiting = ending, self._scratch.stream("inputs", (self._n_tokens, inputs.shape[1]))
        self._waiting[1][part.rows] = inputs

    def _finish(
        self, branch: Branch, layer: Layer, stream: Float32, part: Together, inputs: Float32, ending: Ending
    ) -> None:
        """A stream through the ending, whose inputs are rounded already if they are to be."""
        bias = None if ending.bias is None else layer.weights[ending.bias]
        out = self._forward.linear(inputs, layer.weights[ending.role], bias)
        stream[part.rows] += self._forward.behind(branch, layer, out)

    def _watch(
        self,
        branch: Branch,
        layer: Layer,
        stream: Float32,
        part: Together,
        wanted: Address,
        routing: Routing | None,
    ) -> dict[Slice, Float32]:
        run = self._forward
        run.wanted, run.seen, run.routing = frozenset((wanted,)), {}, routing
        try:
            run.branch(branch, layer, stream[part.rows], part.batch())
        except _Enough:
            pass
        finally:
            run.wanted, run.routing = frozenset(), None
        return run.seen


def final_states(graph: WeightGraph, chunks: Sequence[Sequence[int]]) -> Iterator[Float32]:
    """What the head is multiplied with in float, batch by batch."""
    forward = Forward(graph, keep_bytes=0)
    for part in together(chunks):
        yield np.concatenate(forward.states(State(len(part.chunks)), part.chunks))


def quantised_layer(layer: Layer, store: Store) -> Layer:
    """A layer in which the weights that are tuned are what their codes stand for."""
    weights: Mapping[Role, Weight] = {
        role: replace(weight, view=store.encoded(weight.address, weight.view.name))
        if weight.address in store.weights
        else weight
        for role, weight in layer.weights.items()
    }
    return replace(layer, weights=weights)


def _rounded(rows: Float32, ids: np.ndarray, table: Encoding) -> Float32:
    """Embedded rows as an encoding leaves them; each token's once."""
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    some = rows[first]
    if table.refusal(some.shape[1]) is not None:
        return rows
    padded = np.pad(some, ((0, -len(some) % table.tile_rows), (0, 0)))
    return table.decode(*table.encode(padded))[which.ravel()]
