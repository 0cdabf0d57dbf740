"""The gated short convolution."""

from __future__ import annotations

import numpy as np

from ..blocks import ShortConv
from ..dtypes import Float32
from ..graph import Layer
from ..roles import Role
from .state import Batch
from .weights import Weights


def short_conv(run: Weights, block: ShortConv, layer: Layer, x: Float32, batch: Batch) -> Float32:
    """out(C * conv(B * x)) of tokens [n, H]; the last width - 1 gated inputs are remembered."""
    weights = layer.weights
    b, c, x = np.split(run.linear(x, weights[Role.CONV_IN], weights.get(Role.CONV_IN_BIAS)), 3, axis=1)
    gated = b * x
    kernel = weights[Role.CONV_KERNEL].view
    taps = run.load(kernel, 0, kernel.n_rows).T  # [K, H]
    mixed = np.empty_like(gated)
    for sequence, rows in batch.pieces():
        past = sequence.conv.get(layer.index)
        if past is None:
            past = np.zeros((block.width - 1, gated.shape[1]), np.float32)
        window, n = np.concatenate([past, gated[rows]]), rows.stop - rows.start
        mixed[rows] = sum(taps[k] * window[k : k + n] for k in range(block.width))
        sequence.conv[layer.index] = window[-(block.width - 1) :].copy()
    bias = weights.get(Role.CONV_KERNEL_BIAS)
    if bias is not None:
        mixed += run.vector(bias)
    return run.linear(c * mixed, weights[Role.CONV_OUT], weights.get(Role.CONV_OUT_BIAS))
