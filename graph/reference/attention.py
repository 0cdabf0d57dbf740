"""Grouped-query attention: rotated, windowed, gated, as its block says.

Source: Su et al. 2021 (rotary embedding).
"""

from __future__ import annotations

import numpy as np

from ..blocks import Attention, Norm, Rope
from ..dtypes import Float32
from ..graph import Layer, Weight
from ..roles import Role
from ..rotary import cosine, of_length, rotary_angles, sine
from .activations import sigmoid
from .cores import cut, each
from .state import AttentionCache, Batch, Conversation
from .weights import Weights

_SCORE_ELEMENTS = 1 << 22
PROJECTIONS = ((Role.ATTN_Q, Role.ATTN_Q_BIAS), (Role.ATTN_K, Role.ATTN_K_BIAS), (Role.ATTN_V, Role.ATTN_V_BIAS))
HEAD_NORMS = ((Role.ATTN_Q, Role.Q_NORM), (Role.ATTN_K, Role.K_NORM))
# Queries scored at a time: keys after the block's last are not even multiplied, which saves up to half.
QUERY_ROWS = 128


class AttentionWeights(Weights):
    """The steps of attention that runtimes get wrong, each by itself."""

    def head_norm(self, x: Float32, gain: Weight, norm: Norm) -> Float32:
        """The norm of queries and keys [tokens, heads, head_dim], each head by itself."""
        return self.norm(x, gain, norm)

    def rotate(self, x: Float32, cos: Float32, sin: Float32, rope: Rope) -> Float32:
        """x [tokens, heads, head_dim] turned by angles whose cos and sin are [tokens, 1, n_dims / 2]."""
        paired, rest = x[..., : rope.n_dims], x[..., rope.n_dims :]
        if rope.pairs_neighbours:
            first, second = paired[..., ::2], paired[..., 1::2]
            turned = np.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(paired.shape)
            return np.concatenate([turned, rest], axis=-1)
        first, second = np.split(paired, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention(run: AttentionWeights, block: Attention, layer: Layer, x: Float32, batch: Batch) -> Float32:
    """The attention of tokens [n, H] over what their sequences remember."""
    weights, heads = layer.weights, {}
    for role, bias in PROJECTIONS:
        heads[role] = run.linear(x, weights[role], weights.get(bias)).reshape(len(x), -1, block.head_dim)
    if block.qk_norm is not None:
        for role, gain in HEAD_NORMS:
            heads[role] = run.head_norm(heads[role], weights[gain], block.qk_norm)
    out = np.empty((x.shape[0], block.q_size), np.float32)
    for sequence, rows in batch.pieces():
        q, k, v = (heads[role][rows] for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V))
        n = len(q)
        if block.rope is not None:
            cos, sin = rotary_waves(block.rope, sequence.length, n)
            q, k = run.rotate(q, cos, sin, block.rope), run.rotate(k, cos, sin, block.rope)
        keys, values = _cache(sequence, layer.index, block).append(k.transpose(1, 0, 2), v.transpose(1, 0, 2))
        out[rows] = attend(q.transpose(1, 0, 2), keys, values, block).transpose(1, 0, 2).reshape(n, -1)
    if block.is_gated:
        gate = sigmoid(run.linear(x, weights[Role.ATTN_GATE]))
        out = (out.reshape(-1, block.n_heads, block.head_dim) * gate[:, :, None]).reshape(out.shape)
    return run.linear(out, weights[Role.ATTN_OUT], weights.get(Role.ATTN_OUT_BIAS))


def _cache(sequence: Conversation, layer: int, block: Attention) -> AttentionCache:
    if layer not in sequence.attention:
        empty = np.empty((block.n_kv_heads, 0, block.head_dim), np.float32)
        sequence.attention[layer] = AttentionCache(empty, empty)
    return sequence.attention[layer]


def rotary_waves(rope: Rope, start: int, n: int) -> tuple[Float32, Float32]:
    """cos and sin [n, 1, n_dims / 2] of positions start … start + n - 1, which are the last of their sequence."""
    angles = rotary_angles(of_length(rope, start + n), start, start + n)[:, None]
    cos, sin = cosine(angles), sine(angles)
    return (cos, sin) if rope.factor == 1 else (cos * np.float32(rope.factor), sin * np.float32(rope.factor))


def attend(q: Float32, keys: Float32, values: Float32, block: Attention) -> Float32:
    """Attention of the last queries over all keys that their block lets them see.

    Shapes: q [n_heads, n, d]; keys, values [n_kv_heads, total, d]; returns [n_heads, n, d].
    """
    n_heads, n, d = q.shape
    n_kv, total, _ = keys.shape
    grouped = q.reshape(n_kv, n_heads // n_kv, n, d) * np.float32(block.scale)
    out = np.empty_like(grouped)
    step = max(1, min(QUERY_ROWS, _SCORE_ELEMENTS * n_kv // (n_heads * total)))
    before = total - n

    def attend_some(first: int, last: int) -> None:
        for kv, (low, high) in ((kv, rows) for kv in range(first, last) for rows in cut(n, step)):
            start, stop = visible(block, before, low, high, total)
            weights = weigh(grouped[kv, :, low:high], keys[kv, start:stop], block, before, low, start)
            out[kv, :, low:high] = weights @ values[kv, start:stop]

    each(attend_some, cut(n_kv, 1))
    return out.reshape(n_heads, n, d)


def visible(block: Attention, before: int, low: int, high: int, total: int) -> tuple[int, int]:
    """The range of keys outside of which the queries low … high - 1 see none: those are not even multiplied."""
    start = 0 if block.window is None else max(0, before + low - block.window + 1)
    return start, before + high if block.is_causal else total


def weigh(q: Float32, keys: Float32, block: Attention, before: int, low: int, start: int) -> Float32:
    """How each query weighs each key: softmax of q [heads, n, d] times keys [m, d], transposed: [heads, n, m].

    The first query is `low` after `before` others, the first key is `start`.
    """
    scores = q @ keys.T
    n, m = scores.shape[1:]
    np.copyto(scores, np.float32(-np.inf), where=_hidden(block, before, low, low + n, start, start + m))
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _hidden(block: Attention, before: int, low: int, high: int, start: int, stop: int) -> np.ndarray:
    """Which of the keys start … stop - 1 each of the queries low … high - 1 does not see."""
    distance = (before + np.arange(low, high))[:, None] - np.arange(start, stop)
    hidden = distance < 0 if block.is_causal else np.zeros(distance.shape, bool)
    return hidden if block.window is None else hidden | (abs(distance) >= block.window)
