"""Importance of columns as searches take it: none of a block counts for nothing."""

from __future__ import annotations

import numpy as np

from ..graph.dtypes import Float32


def all_counted(weights: Float32) -> Float32:
    """Weights [blocks, elements] in which a zero counts as the least that is more; a block of zeros as all alike.

    A column that no text has used is not a column without use. Where none counts, or only such as are zero in the
    weights themselves, a search that weighs them by nothing would find that a scale of zero fits as well as any.
    """
    is_zero = weights == 0
    if not is_zero.any():
        return weights
    least = np.where(is_zero, np.float32(np.inf), weights).min(axis=1, keepdims=True)
    counted: Float32 = np.where(is_zero, np.where(np.isfinite(least), least, np.float32(1)), weights)
    return counted
