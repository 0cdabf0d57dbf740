"""The gated short convolution, turned round."""

from __future__ import annotations

import numpy as np

from ...blocks import ShortConv
from ...dtypes import Float32
from ...graph import Layer
from ...roles import Role
from ..state import Batch
from .weights import BackwardWeights, Pullback


def short_conv(
    run: BackwardWeights, block: ShortConv, layer: Layer, x: Float32, batch: Batch
) -> tuple[Float32, Pullback]:
    """out(C * conv(B * x)) of tokens [n, H], each sequence from its start."""
    weights = layer.weights
    b, c, x = np.split(run.linear(x, weights[Role.CONV_IN], weights.get(Role.CONV_IN_BIAS)), 3, axis=1)
    gated = b * x
    kernel = weights[Role.CONV_KERNEL].view
    taps = run.load(kernel, 0, kernel.n_rows).T  # [K, H]
    pieces = [rows for _, rows in batch.pieces()]
    mixed = np.empty_like(gated)
    for rows in pieces:
        mixed[rows] = _convolve(taps, gated[rows])
    bias = weights.get(Role.CONV_KERNEL_BIAS)
    if bias is not None:
        mixed += run.vector(bias)
    out = run.linear(c * mixed, weights[Role.CONV_OUT], weights.get(Role.CONV_OUT_BIAS))

    def pull(gradient: Float32) -> Float32:
        by_product = run.pull(gradient, weights[Role.CONV_OUT])
        by_mixed = by_product * c
        by_gated = np.empty_like(by_mixed)
        for rows in pieces:
            by_gated[rows] = _convolve(taps, by_mixed[rows][::-1])[::-1]
        joined = np.concatenate([by_gated * x, by_product * mixed, by_gated * b], axis=1)
        return run.pull(joined, weights[Role.CONV_IN])

    return out, pull


def _convolve(taps: Float32, values: Float32) -> Float32:
    """Each row with the ones before it, the last tap with itself; nothing lies before the first.

    What a row gives to later ones is the same thing read from the end.
    """
    width, n = len(taps), len(values)
    window = np.concatenate([np.zeros((width - 1, values.shape[1]), np.float32), values])
    found: Float32 = sum(taps[k] * window[k : k + n] for k in range(width))
    return found
