"""The graph runs itself: float32 numpy, streamed layer by layer.

This is the oracle that artifacts are compared with; it is itself checked against transformers.
Prompts of a batch are laid end to end, never padded: linear layers see one matrix of all tokens,
and the blocks that mix tokens see each sequence by itself. Prefill, chunked prefill and decode
are one function, `extend`, that continues from a `State`. Each kind of block is a file beside this one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..blocks import Attention, Branch, Dense, Mixture, Pooling, ShortConv
from ..dtypes import Float32
from ..errors import UsageError
from ..graph import Layer
from ..roles import Role
from .attention import AttentionWeights, attention
from .feed_forward import RoutedWeights, Routing, dense, mixture
from .short_conv import short_conv
from .state import Batch, State

__all__ = ["Forward", "Logits", "Routing", "State"]

_BLOCKS: Mapping[type, Callable[..., Float32]] = {
    ShortConv: short_conv,
    Attention: attention,
    Dense: dense,
    Mixture: mixture,
}


# Elements of logits that are computed at a time, so that the head is read for many rows together.
HEAD_ELEMENTS = 1 << 25


# The rows that a text's vectors are made of.
_POOLED: Mapping[Pooling, Callable[[Float32], Float32]] = {
    Pooling.NONE: lambda states: states,
    Pooling.CLS: lambda states: states[:1],
    Pooling.MEAN: lambda states: states.mean(axis=0, keepdims=True),
    Pooling.LAST: lambda states: states[-1:],
}


def unit_vectors(vectors: Float32) -> Float32:
    """Vectors [m, D] divided by their lengths; one of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    found: Float32 = vectors / lengths
    return found


class Logits:
    """Logits [n, V] of which only the normed rows [n, H] before the head are kept; slices are arrays.

    All logits of one forward keep a single block between them, however many prompts there are and words.
    """

    _start: int
    _block: Float32

    def __init__(self, forward: Forward, states: Float32) -> None:
        self._forward, self._states = forward, states
        self.shape = (len(states), forward.graph.config.n_outputs)
        self.forget()

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, rows: slice) -> Float32:
        start, stop, _ = rows.indices(len(self))
        if not self._start <= start <= stop <= self._start + len(self._block):
            self._forward.let_only(self)
            n_rows = max(stop - start, HEAD_ELEMENTS // self.shape[1])
            self._start, self._block = start, self._forward.head(self._states[start : start + n_rows])
        return self._block[start - self._start : stop - self._start]

    def forget(self) -> None:
        """Lets go of the block, which is computed again if it is asked for."""
        self._start, self._block = 0, np.empty((0, self.shape[1]), np.float32)


class Forward(AttentionWeights, RoutedWeights):
    """Runs a weight graph."""

    _holder: weakref.ref[Logits] | None = None

    def let_only(self, logits: Logits) -> None:
        """Of all logits of this forward only these hold a block from now on."""
        before = self._holder() if self._holder else None
        if before is not None and before is not logits:
            before.forget()
        self._holder = weakref.ref(logits)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Float32], State]:
        """Logits [n_tokens, V] of each prompt from an empty state, and the state after it."""
        state = State(len(prompts))
        return self.extend(state, prompts), state

    def extend(self, state: State, tokens: Sequence[Sequence[int]]) -> list[Float32]:
        """Continues each sequence with its tokens; returns logits [n_tokens, V] of each. Raises: as `states`."""
        states = self.states(state, tokens)
        return np.split(self.head(np.concatenate(states)), np.cumsum([len(each) for each in states])[:-1])

    def states(self, state: State, tokens: Sequence[Sequence[int]]) -> list[Float32]:
        """As `extend`, but without the head: normed rows [n_tokens, H], which are far smaller than logits.

        Raises: UsageError for an id outside the vocabulary or an empty sequence.
        """
        batch = self._batch(state, tokens)
        hidden = self.embedded(tokens)
        for layer in self.graph.layers:
            hidden = self.run_layer(layer, hidden, batch)
        for sequence, n in zip(state.sequences, batch.lengths, strict=True):
            sequence.length += n
        return np.split(self.finish(hidden), np.cumsum(batch.lengths)[:-1])

    def lazy_logits(self, prompts: Sequence[Sequence[int]]) -> list[Logits | Float32]:
        """Logits of each prompt from an empty state, of which rows are computed when they are asked for; or its vectors."""
        return [self.outputs(states) for states in self.states(State(len(prompts)), prompts)]

    def trace(self, prompts: Sequence[Sequence[int]]) -> Iterator[Float32]:
        """The residual stream [tokens, H] of prompts laid end to end: embedded, then after each layer."""
        batch = self._batch(State(len(prompts)), prompts)
        hidden = self.embedded(prompts)
        yield hidden
        for layer in self.graph.layers:
            hidden = self.run_layer(layer, hidden, batch)
            yield hidden

    def run_layer(self, layer: Layer, hidden: Float32, batch: Batch) -> Float32:
        """One layer on the residual stream [tokens, H] of a batch's sequences."""
        for branch in layer.branches:
            hidden = hidden + self.branch(branch, layer, hidden, batch)
        return hidden

    def branch(self, branch: Branch, layer: Layer, hidden: Float32, batch: Batch) -> Float32:
        """What a branch of a layer adds to the residual stream [tokens, H]."""
        normed = self.norm(hidden, layer.weights[branch.norm_role], branch.norm) if branch.norm else hidden
        return self.behind(branch, layer, _BLOCKS[type(branch.block)](self, branch.block, layer, normed, batch))

    def behind(self, branch: Branch, layer: Layer, out: Float32) -> Float32:
        """What a branch adds to the residual stream [tokens, H], of what its block gives."""
        if branch.post_norm:
            out = self.norm(out, layer.weights[branch.post_norm_role], branch.post_norm)
        return out if branch.scale == 1 else out * np.float32(branch.scale)

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int, stop: Sequence[int] = ()) -> list[int]:
        """Greedy continuation of one prompt, ending with the first stop id."""
        logits, state = self.prefill([prompt])
        out: list[int] = []
        while len(out) < max_new_tokens:
            out.append(int(logits[0][-1].argmax()))
            if out[-1] in stop or len(out) == max_new_tokens:
                break
            logits = self.extend(state, [out[-1:]])
        return out

    def finish(self, hidden: Float32) -> Float32:
        """The norm before the head."""
        return self.norm(hidden, self.graph.top[Role.FINAL_NORM], self.graph.config.final_norm)

    def outputs(self, states: Float32) -> Logits | Float32:
        """What the model gives of a text whose normed rows [n, H] these are: logits [n, V], or its vectors [m, D]."""
        return Logits(self, states) if self.graph.config.vectors is None else self.vectors(states)

    def vectors(self, states: Float32) -> Float32:
        """The vectors [m, D] of a text whose normed rows [n, H] these are: one, or as many as it has tokens."""
        head = self.graph.config.vectors
        if head is None:
            raise UsageError(f"{self.graph.name}: gives logits and no vectors")
        found = self.head(_POOLED[head.pooling](states))
        return unit_vectors(found) if head.is_normalised else found

    def head(self, hidden: Float32) -> Float32:
        """Logits [n, V] of normed rows of the residual stream; of a model that gives vectors, those [n, D]."""
        if self.graph.config.vectors is not None:
            projection = self.graph.top.get(Role.PROJECTION)
            return hidden if projection is None else self.linear(hidden, projection)
        logits = self.linear(hidden, self.graph.top.get(Role.LM_HEAD, self.graph.top[Role.EMBED]))
        scale = self.graph.config.logit_scale
        return logits if scale == 1 else logits * np.float32(scale)

    def embedded(self, tokens: Sequence[Sequence[int]]) -> Float32:
        """The residual stream [tokens, H] before the first layer, of prompts laid end to end."""
        ids = np.concatenate([np.asarray(t, np.int64) for t in tokens])
        rows, scale = self.lookup(self.graph.top[Role.EMBED], ids), self.graph.config.embedding_scale
        return rows if scale == 1 else rows * np.float32(scale)

    def _batch(self, state: State, tokens: Sequence[Sequence[int]]) -> Batch:
        """A state and the token lists that continue it. Raises: as `extend`."""
        if len(tokens) != len(state.sequences):
            raise UsageError(f"{len(tokens)} token lists for a state of {len(state.sequences)} sequences")
        if any(sequence.length for sequence in state.sequences) and not self.graph.config.is_causal:
            raise UsageError("a sequence whose tokens see later ones cannot be continued")
        lengths = [len(t) for t in tokens]
        if not lengths or 0 in lengths:
            raise UsageError("a sequence of zero tokens has no logits")
        vocab_size = self.graph.config.vocab_size
        for token in (extreme for t in tokens for extreme in (min(t), max(t))):
            if not 0 <= token < vocab_size:
                raise UsageError(f"token id {token} is outside the vocabulary of {vocab_size}")
        return Batch(state, lengths)
