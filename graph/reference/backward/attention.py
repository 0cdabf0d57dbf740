"""Grouped-query attention, turned round: scores are computed again a block of queries at a time, never kept.

Source: Dao et al. 2022 (FlashAttention), section 3.1, for the backward pass from the output alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...blocks import Attention
from ...dtypes import Float32
from ...graph import Layer
from ...roles import Role
from ..activations import sigmoid
from ..attention import HEAD_NORMS, PROJECTIONS, QUERY_ROWS, attend, rotary_waves, visible, weigh
from ..cores import cut, each
from ..state import Batch
from .weights import BackwardWeights, Pullback

_Q, _K, _V = (role for role, _ in PROJECTIONS)
Heads = dict[Role, Float32]


@dataclass(frozen=True)
class _Seen:
    """What one sequence attends with, and to. Shapes: q, out [n_heads, n, d]; k, v [n_kv_heads, n, d]."""

    q: Float32
    k: Float32
    v: Float32
    out: Float32


def attention(
    run: BackwardWeights, block: Attention, layer: Layer, x: Float32, batch: Batch
) -> tuple[Float32, Pullback]:
    """The attention of tokens [n, H], each sequence from its start."""
    weights = layer.weights
    raw = {
        role: run.linear(x, weights[role], weights.get(bias)).reshape(len(x), -1, block.head_dim)
        for role, bias in PROJECTIONS
    }
    heads = dict(raw)
    if block.qk_norm is not None:
        for role, gain in HEAD_NORMS:
            heads[role] = run.head_norm(raw[role], weights[gain], block.qk_norm)
    pieces = [rows for _, rows in batch.pieces()]
    seen = [_see(run, block, heads, rows) for rows in pieces]
    mixed = np.concatenate([each.out.transpose(1, 0, 2) for each in seen])  # [n, n_heads, d]
    gate = sigmoid(run.linear(x, weights[Role.ATTN_GATE]))[:, :, None] if block.is_gated else None
    gated = mixed if gate is None else mixed * gate
    out = run.linear(gated.reshape(len(x), -1), weights[Role.ATTN_OUT], weights.get(Role.ATTN_OUT_BIAS))

    def pull(gradient: Float32) -> Float32:
        by_gated = run.pull(gradient, weights[Role.ATTN_OUT]).reshape(mixed.shape)
        by_mixed = by_gated if gate is None else by_gated * gate
        by_heads = {role: np.empty_like(values) for role, values in raw.items()}
        for rows, piece in zip(pieces, seen, strict=True):
            _pull_piece(run, block, piece, by_mixed[rows], {role: by[rows] for role, by in by_heads.items()})
        if block.qk_norm is not None:
            for role, gain in HEAD_NORMS:
                by_heads[role] = run.pull_norm(by_heads[role], raw[role], weights[gain], block.qk_norm)
        found = np.zeros((len(gradient), weights[_Q].shape[1]), np.float32)
        for role, by_head in by_heads.items():
            found += run.pull(by_head.reshape(len(gradient), -1), weights[role])
        if gate is not None:
            by_gate = (by_gated * mixed).sum(axis=2, keepdims=True) * gate * (1 - gate)
            found += run.pull(by_gate[:, :, 0], weights[Role.ATTN_GATE])
        return found

    return out, pull


def _see(run: BackwardWeights, block: Attention, heads: Heads, rows: slice) -> _Seen:
    q, k, v = (heads[role][rows] for role in (_Q, _K, _V))
    if block.rope is not None:
        cos, sin = rotary_waves(block.rope, 0, len(q))
        q, k = run.rotate(q, cos, sin, block.rope), run.rotate(k, cos, sin, block.rope)
    q, k, v = (np.ascontiguousarray(each.transpose(1, 0, 2)) for each in (q, k, v))
    return _Seen(q, k, v, attend(q, k, v, block))


def _pull_piece(run: BackwardWeights, block: Attention, seen: _Seen, gradient: Float32, into: Heads) -> None:
    """Fills gradients by one sequence's queries, keys and values [n, heads, d], before they turn."""
    found = _pull_attend(np.ascontiguousarray(gradient.transpose(1, 0, 2)), seen, block)
    by_q, by_k, by_v = (each.transpose(1, 0, 2) for each in found)
    if block.rope is not None:
        cos, sin = rotary_waves(block.rope, 0, len(by_q))
        by_q, by_k = run.rotate(by_q, cos, -sin, block.rope), run.rotate(by_k, cos, -sin, block.rope)
    into[_Q][...], into[_K][...], into[_V][...] = by_q, by_k, by_v


def _pull_attend(gradient: Float32, seen: _Seen, block: Attention) -> tuple[Float32, Float32, Float32]:
    """Gradients by queries, keys and values, as `attend` takes them, from that by its output [n_heads, n, d]."""
    n_heads, n, d = seen.q.shape
    shape = (len(seen.k), n_heads // len(seen.k), n, d)
    scale = np.float32(block.scale)
    q, by_out = seen.q.reshape(shape) * scale, gradient.reshape(shape)
    # of every query the mean of its gradients by scores, which the softmax takes off
    mean = (by_out * seen.out.reshape(shape)).sum(axis=-1, keepdims=True)
    by_q, by_k, by_v = np.empty_like(q), np.zeros_like(seen.k), np.zeros_like(seen.v)

    def pull(first: int, last: int) -> None:
        for kv, (low, high) in ((kv, rows) for kv in range(first, last) for rows in cut(n, QUERY_ROWS)):
            start, stop = visible(block, 0, low, high, n)
            keys, values = seen.k[kv, start:stop], seen.v[kv, start:stop]
            weights = weigh(q[kv, :, low:high], keys, block, 0, low, start)
            given = by_out[kv, :, low:high]
            by_scores = given @ values.T
            by_scores -= mean[kv, :, low:high]
            by_scores *= weights
            n_keys = stop - start
            by_q[kv, :, low:high] = by_scores @ keys
            by_k[kv, start:stop] += by_scores.reshape(-1, n_keys).T @ q[kv, :, low:high].reshape(-1, d)
            by_v[kv, start:stop] += weights.reshape(-1, n_keys).T @ given.reshape(-1, d)

    each(pull, cut(len(seen.k), 1))
    by_q *= scale
    return by_q.reshape(seen.q.shape), by_k, by_v
