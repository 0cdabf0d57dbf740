"""The gated short convolution."""

from __future__ import annotations

import numpy as np

from ..blocks import ShortConv
from ..dtypes import Float32
from ..graph import Layer
from ..roles import Role
from .state import Batch
from .weights import Weights


def _window(block: ShortConv, past: Float32 | None, gated: Float32) -> Float32:
    """The gated inputs [n + width - 1, H] that the n positions see: the last of them before, or as many on both sides."""
    n_before = block.width - 1 if block.is_causal else block.width // 2
    if past is None:
        past = np.zeros((n_before, gated.shape[1]), np.float32)
    after = np.zeros((block.width - 1 - n_before, gated.shape[1]), np.float32)
    return np.concatenate([past, gated, after])


def short_conv(run: Weights, block: ShortConv, layer: Layer, x: Float32, batch: Batch) -> Float32:
    """out(C * conv(B * x)) of tokens [n, H]; a causal one remembers the last width - 1 gated inputs."""
    weights = layer.weights
    b, c, x = np.split(run.linear(x, weights[Role.CONV_IN], weights.get(Role.CONV_IN_BIAS)), 3, axis=1)
    gated = b * x
    kernel = weights[Role.CONV_KERNEL].view
    taps = run.load(kernel, 0, kernel.n_rows).T  # [K, H]
    mixed = np.empty_like(gated)
    for sequence, rows in batch.pieces():
        n = rows.stop - rows.start
        window = _window(block, sequence.conv.get(layer.index), gated[rows])
        mixed[rows] = sum(taps[k] * window[k : k + n] for k in range(block.width))
        if block.is_causal:
            sequence.conv[layer.index] = window[-(block.width - 1) :].copy()
    bias = weights.get(Role.CONV_KERNEL_BIAS)
    if bias is not None:
        mixed += run.vector(bias)
    return run.linear(c * mixed, weights[Role.CONV_OUT], weights.get(Role.CONV_OUT_BIAS))
