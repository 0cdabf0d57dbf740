"""Root-mean-square norms, computed in float32: squares of a residual stream leave half precision."""

from __future__ import annotations

import numpy as np

from ...graph.blocks import Norm
from ...graph.graph import Weight
from .builder import Var
from .mil import Dtype
from .prelude import Context


def norm(context: Context, norm_: Norm, gain: Weight, x: Var, *, dtype: Dtype = Dtype.FLOAT16) -> Var:
    """The norm of x over its last axis, as a type."""
    b = context.b
    wide = b.cast(x, Dtype.FLOAT32)
    mean = b.reduce("reduce_mean", b.unary("square", wide), -1, keep=True)
    normed = b.binary("mul", wide, b.unary("rsqrt", mean, epsilon=np.float32(norm_.eps)))
    return b.cast(b.binary("mul", normed, context.weight(gain)), dtype)
