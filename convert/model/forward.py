"""The graph runs itself: float32 numpy, streamed layer by layer.

This is the oracle that artifacts are compared with; it is itself checked against transformers.
Prompts of a batch are laid end to end, never padded: linear layers see one matrix of all tokens,
and the operators that mix tokens see each sequence by itself. Prefill, chunked prefill and decode
are one function, `extend`, that continues from a `State`.
Source: transformers `modeling_lfm2.py`, `modeling_lfm2_moe.py`; Su et al. 2021 (rotary embedding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UsageError
from .config import ModelConfig, MoEConfig, Operator
from .dtypes import Float32
from .graph import Layer, Role, WeightGraph
from .side_by_side import cut, each
from .tensor import TensorView

# Of a piece of a product: weights that stay in cache between being widened and used, or, of kept weights, the work
# that pays for handing it to another core.
_PIECE_ELEMENTS = 3 << 17
_PIECE_PRODUCTS = 1 << 22
_PIECE_ROWS = 128
_SCORE_ELEMENTS = 1 << 22
# Queries scored at a time: keys after the block's last are not even multiplied, which saves up to half.
_QUERY_ROWS = 128


@dataclass
class _AttentionCache:
    """Rotated keys and values of one sequence in one layer: [n_kv_heads, capacity, head_dim]."""

    keys: Float32
    values: Float32
    length: int = 0

    def append(self, keys: Float32, values: Float32) -> tuple[Float32, Float32]:
        """Adds [n_kv_heads, n, head_dim]; returns all so far."""
        total = self.length + keys.shape[1]
        if total > self.keys.shape[1]:
            grow = ((0, 0), (0, max(total, 2 * self.length) - self.keys.shape[1]), (0, 0))
            self.keys, self.values = np.pad(self.keys, grow), np.pad(self.values, grow)
        self.keys[:, self.length : total], self.values[:, self.length : total] = keys, values
        self.length = total
        return self.keys[:, :total], self.values[:, :total]


@dataclass
class Conversation:
    """What one conversation remembers: tokens seen, conv windows, keys and values by layer."""

    length: int = 0
    conv: dict[int, Float32] = field(default_factory=dict)
    attention: dict[int, _AttentionCache] = field(default_factory=dict)


class State:
    """The caches of a batch of independent conversations."""

    def __init__(self, n_sequences: int) -> None:
        self.sequences = [Conversation() for _ in range(n_sequences)]


@dataclass(frozen=True)
class Routing:
    """Choice of a MoE layer. Shapes: both [tokens, top_k]; weights as they multiply the experts."""

    experts: np.ndarray
    weights: Float32


class Forward:
    """Runs a weight graph.

    A model of up to `keep_bytes` in float32 is kept between calls, so that it decodes fast. The weights of a larger
    one are streamed from the checkpoint each time, a piece at a time, and peak memory is that of the activations.
    """

    def __init__(self, graph: WeightGraph, *, keep_bytes: int = 1 << 28) -> None:
        self.graph = graph
        self.config: ModelConfig = graph.config
        self._kept: dict[int, Float32] = {}
        self._keeps = 4 * graph.n_parameters <= keep_bytes
        self.routings: dict[int, Routing] = {}

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Float32], State]:
        """Logits [n_tokens, V] of each prompt from an empty state, and the state after it."""
        state = State(len(prompts))
        return self.extend(state, prompts), state

    def extend(self, state: State, tokens: Sequence[Sequence[int]]) -> list[Float32]:
        """Continues each sequence with its tokens; returns logits [n_tokens, V] of each.

        Raises: UsageError for an id outside the vocabulary or an empty sequence.
        """
        lengths = self._check(state, tokens)
        hidden = self._embed(np.concatenate([np.asarray(t, np.int64) for t in tokens]))
        for layer in self.graph.layers:
            hidden = self.run_layer(layer, hidden, state, lengths)
        for sequence, n in zip(state.sequences, lengths, strict=True):
            sequence.length += n
        logits = self._linear(self._finish(hidden), self.graph.head)
        return _split(logits, lengths)

    def trace(self, prompts: Sequence[Sequence[int]]) -> Iterator[Float32]:
        """The residual stream [tokens, H] of prompts laid end to end: embedded, then after each layer."""
        state = State(len(prompts))
        lengths = self._check(state, prompts)
        hidden = self._embed(np.concatenate([np.asarray(t, np.int64) for t in prompts]))
        yield hidden
        for layer in self.graph.layers:
            hidden = self.run_layer(layer, hidden, state, lengths)
            yield hidden

    def run_layer(self, layer: Layer, hidden: Float32, state: State, lengths: Sequence[int]) -> Float32:
        """One block on the residual stream [tokens, H] of sequences of these lengths."""
        normed = self._norm(hidden, layer[Role.OPERATOR_NORM])
        mix = self._short_conv if layer.operator is Operator.SHORT_CONV else self._attention
        hidden = hidden + mix(layer, normed, state, lengths)
        normed = self._norm(hidden, layer[Role.FFN_NORM])
        hidden += self._moe(layer, normed) if layer.is_moe else self._dense(layer, normed)
        return hidden

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

    def _check(self, state: State, tokens: Sequence[Sequence[int]]) -> list[int]:
        """The lengths of token lists that continue a state. Raises: as `extend`."""
        if len(tokens) != len(state.sequences):
            raise UsageError(f"{len(tokens)} token lists for a state of {len(state.sequences)} sequences")
        lengths = [len(t) for t in tokens]
        if not lengths or 0 in lengths:
            raise UsageError("a sequence of zero tokens has no logits")
        for token in (extreme for t in tokens for extreme in (min(t), max(t))):
            if not 0 <= token < self.config.vocab_size:
                raise UsageError(f"token id {token} is outside the vocabulary of {self.config.vocab_size}")
        return lengths

    def _finish(self, hidden: Float32) -> Float32:
        """The norm before the head."""
        return self._norm(hidden, self.graph[Role.FINAL_NORM])

    # Weights

    def _load(self, view: TensorView, start: int, stop: int) -> Float32:
        if not self._keeps:
            return view.rows(start, stop)
        if id(view) not in self._kept:
            self._kept[id(view)] = view.rows(0, view.n_rows)
        return self._kept[id(view)][start:stop]

    def _vector(self, view: TensorView) -> Float32:
        return self._load(view, 0, 1)[0]

    def _embed(self, ids: np.ndarray) -> Float32:
        table = self.graph[Role.EMBED]
        if self._keeps:
            return self._load(table, 0, table.n_rows)[ids]
        tokens, places = np.unique(ids, return_inverse=True)
        # single rows: a 128,000-row table is never widened for a prompt
        return np.concatenate([table.rows(token, token + 1) for token in tokens.tolist()])[places]

    def _linear(
        self, x: Float32, view: TensorView, bias: TensorView | None = None, *, start: int = 0, count: int = -1
    ) -> Float32:
        """x [n, in] times rows [start, start+count) of the matrix, transposed: [n, count]."""
        count = view.n_rows if count < 0 else count
        out = np.empty((x.shape[0], count), np.float32)
        added = None if bias is None else self._vector(bias)

        def multiply(low: int, high: int) -> None:
            np.matmul(x, self._load(view, start + low, start + high).T, out=out[:, low:high])
            if added is not None:
                out[:, low:high] += added[low:high]

        step = _PIECE_PRODUCTS // x.size if self._keeps else _PIECE_ELEMENTS // view.n_cols
        each(multiply, cut(count, max(_PIECE_ROWS, step)))
        return out

    def _norm(self, x: Float32, gain: TensorView) -> Float32:
        """Root-mean-square norm over the last axis."""
        weight, epsilon = self._vector(gain), np.float32(self.config.norm_eps)
        out = np.empty_like(x)

        def norm(low: int, high: int) -> None:
            np.multiply(x[low:high], x[low:high], out=out[low:high])
            mean_square = np.mean(out[low:high], axis=-1, keepdims=True, dtype=np.float32)
            np.divide(x[low:high], np.sqrt(mean_square + epsilon), out=out[low:high])
            out[low:high] *= weight

        each(norm, _by_rows(x))
        return out

    # Operators

    def _short_conv(self, layer: Layer, x: Float32, state: State, lengths: Sequence[int]) -> Float32:
        """Gated causal depthwise convolution: out_proj(C * conv(B * x))."""
        width = self.config.conv_width
        b, c, x = np.split(self._linear(x, layer[Role.CONV_IN], layer.get(Role.CONV_IN_BIAS)), 3, axis=1)
        gated = b * x
        taps = self._load(layer[Role.CONV_KERNEL], 0, self.config.hidden_size).T  # [K, H]
        mixed = np.empty_like(gated)
        low = 0
        for sequence, n in zip(state.sequences, lengths, strict=True):
            past = sequence.conv.get(layer.index)
            if past is None:
                past = np.zeros((width - 1, gated.shape[1]), np.float32)
            window = np.concatenate([past, gated[low : low + n]])
            mixed[low : low + n] = sum(taps[k] * window[k : k + n] for k in range(width))
            sequence.conv[layer.index] = window[-(width - 1) :].copy()
            low += n
        bias = layer.get(Role.CONV_KERNEL_BIAS)
        if bias is not None:
            mixed += self._vector(bias)
        return self._linear(c * mixed, layer[Role.CONV_OUT], layer.get(Role.CONV_OUT_BIAS))

    def _attention(self, layer: Layer, x: Float32, state: State, lengths: Sequence[int]) -> Float32:
        config = self.config
        heads = {}
        for role, n_heads, norm in (
            (Role.ATTN_Q, config.n_heads, Role.Q_NORM),
            (Role.ATTN_K, config.n_kv_heads, Role.K_NORM),
            (Role.ATTN_V, config.n_kv_heads, None),
        ):
            split = self._linear(x, layer[role]).reshape(-1, n_heads, config.head_dim)
            heads[role] = split if norm is None else self._head_norm(split, layer[norm])
        out = np.empty((x.shape[0], config.q_size), np.float32)
        low = 0
        for sequence, n in zip(state.sequences, lengths, strict=True):
            here = slice(low, low + n)
            cos, sin = _rotary(config, sequence.length, n)
            q = self._rotate(heads[Role.ATTN_Q][here], cos, sin).transpose(1, 0, 2)
            k = self._rotate(heads[Role.ATTN_K][here], cos, sin).transpose(1, 0, 2)
            cache = sequence.attention.get(layer.index)
            if cache is None:
                empty = np.empty((config.n_kv_heads, 0, config.head_dim), np.float32)
                cache = sequence.attention[layer.index] = _AttentionCache(empty, empty)
            keys, values = cache.append(k, heads[Role.ATTN_V][here].transpose(1, 0, 2))
            out[here] = _attend(q, keys, values).transpose(1, 0, 2).reshape(n, -1)
            low += n
        return self._linear(out, layer[Role.ATTN_OUT])

    def _head_norm(self, x: Float32, gain: TensorView) -> Float32:
        """The norm of queries and keys [tokens, heads, head_dim], each head by itself."""
        return self._norm(x, gain)

    def _rotate(self, x: Float32, cos: Float32, sin: Float32) -> Float32:
        """Half-split rotation: element i is paired with i + head_dim / 2."""
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    # Feed-forward

    def _dense(self, layer: Layer, x: Float32) -> Float32:
        gate, up = self._linear(x, layer[Role.FFN_GATE]), self._linear(x, layer[Role.FFN_UP])
        return self._linear(_gated(gate, up), layer[Role.FFN_DOWN])

    def route(self, layer: Layer, x: Float32) -> Routing:
        """Experts and weights of each token: sigmoid scores, chosen with the bias, weighted without."""
        moe = _moe_config(self.config)
        scores = _sigmoid(self._linear(x, layer[Role.ROUTER]))
        bias = layer.get(Role.EXPERT_BIAS)
        ranked = scores if bias is None else scores + self._vector(bias)
        experts = np.argsort(-ranked, axis=1, kind="stable")[:, : moe.top_k]
        weights = np.take_along_axis(scores, experts, axis=1)
        if moe.norm_topk_prob:
            weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(1e-6))
        return Routing(experts, weights * np.float32(moe.routed_scaling_factor))

    def _moe(self, layer: Layer, x: Float32) -> Float32:
        """Sum over the chosen experts; only those any token chose are read."""
        routing = self.routings[layer.index] = self.route(layer, x)
        used = np.unique(routing.experts).tolist()
        shares: dict[int, tuple[Any, Float32]] = {}

        def run(low: int, high: int) -> None:
            for i in range(low, high):
                token, slot = np.nonzero(routing.experts == used[i])
                chosen = x[token]
                gate, up = (self._expert(chosen, layer[role], used[i]) for role in (Role.EXPERT_GATE, Role.EXPERT_UP))
                down = self._expert(_gated(gate, up), layer[Role.EXPERT_DOWN], used[i])
                shares[i] = token, down * routing.weights[token, slot, None]

        # Experts of a small model are too little work to be cut; those of a large one are cut, so as to be read once.
        if self._keeps:
            each(run, cut(len(used), 1))
        else:
            run(0, len(used))
        out = np.zeros_like(x)
        for i in range(len(used)):  # in this order, whoever was first
            token, share = shares[i]
            out[token] += share
        return out

    def _expert(self, x: Float32, stack: TensorView, expert: int) -> Float32:
        """x times one matrix of a stack [E, out, in], transposed."""
        n_rows = stack.shape[1]
        return self._linear(x, stack, start=expert * n_rows, count=n_rows)


def _moe_config(config: ModelConfig) -> MoEConfig:
    if config.moe is None:
        raise ValueError("a dense model has no router")
    return config.moe


def _split(values: Float32, lengths: Sequence[int]) -> list[Float32]:
    return np.split(values, np.cumsum(lengths)[:-1])


def _sigmoid(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the inverse of that the right zero
        return np.reciprocal(1 + np.exp(-x), dtype=np.float32)


def _by_rows(x: Float32) -> list[tuple[int, int]]:
    """Ranges of the first axis that stay in a core's cache."""
    return cut(len(x), max(1, _PIECE_ELEMENTS * len(x) // x.size))


def _gated(gate: Float32, up: Float32) -> Float32:
    """silu(gate) * up, in place of the gate."""

    def multiply(low: int, high: int) -> None:
        piece = gate[low:high]
        with np.errstate(over="ignore"):  # as above
            scale = np.exp(-piece)
        scale += 1
        np.divide(piece, scale, out=piece)
        piece *= up[low:high]

    each(multiply, _by_rows(gate))
    return gate


def _rotary(config: ModelConfig, start: int, n: int) -> tuple[Float32, Float32]:
    """cos and sin [n, 1, head_dim / 2] of positions start … start + n - 1."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    angles = np.arange(start, start + n, dtype=np.float32)[:, None, None] * inverse
    return np.cos(angles), np.sin(angles)


def _attend(q: Float32, keys: Float32, values: Float32) -> Float32:
    """Causal attention of the last queries over all keys.

    Shapes: q [n_heads, n, d]; keys, values [n_kv_heads, total, d]; returns [n_heads, n, d].
    """
    n_heads, n, d = q.shape
    n_kv, total, _ = keys.shape
    grouped = q.reshape(n_kv, n_heads // n_kv, n, d) * np.float32(d**-0.5)
    out = np.empty_like(grouped)
    step = max(1, min(_QUERY_ROWS, _SCORE_ELEMENTS * n_kv // (n_heads * total)))

    def attend(first: int, last: int) -> None:
        for kv, (low, high) in ((kv, block) for kv in range(first, last) for block in cut(n, step)):
            seen = total - n + high  # keys after the block's last query are masked for all of it
            scores = grouped[kv, :, low:high] @ keys[kv, :seen].T
            future = np.arange(seen) > (total - n + np.arange(low, high))[:, None]
            np.copyto(scores, np.float32(-np.inf), where=future)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[kv, :, low:high] = scores @ values[kv, :seen]

    each(attend, cut(n_kv, 1))
    return out.reshape(n_heads, n, d)
