"""The residual stream through the branches of all layers: norm, block, norm of what it gives, sum.

Blocks take and give float16; the stream, and the norm of what a block gives, is of the piece's type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...graph.blocks import Attention, Branch, Dense, Mixer, Mixture, ShortConv
from ...graph.graph import Layer
from .attention import attention
from .builder import Var
from .dense import dense
from .mil import Dtype
from .mixture import mixture
from .norm import norm
from .prelude import Context
from .short_conv import short_conv

# Each emits its block on x [1, n, H] and returns the result, of the same shape.
_EMITTERS: Mapping[type, Callable[..., Var]] = {
    ShortConv: short_conv,
    Attention: attention,
    Dense: dense,
    Mixture: mixture,
}


def run_layer(context: Context, layer: Layer, hidden: Var) -> Var:
    """The stream [1, n, H] after one layer."""
    b = context.b
    with b.scope(f"layers_{layer.index}"):
        for branch in layer.branches:
            with b.scope("operator" if isinstance(branch.block, Mixer) else "feed_forward"):
                hidden = b.binary("add", hidden, _branch(context, branch, layer, hidden))
    return hidden


def _branch(context: Context, branch: Branch, layer: Layer, hidden: Var) -> Var:
    b = context.b
    x = (
        norm(context, branch.norm, layer.weights[branch.norm_role], hidden)
        if branch.norm
        else b.cast(hidden, Dtype.FLOAT16)
    )
    out = _EMITTERS[type(branch.block)](context, branch.block, layer, x)
    if branch.post_norm is not None:
        out = norm(context, branch.post_norm, layer.weights[branch.post_norm_role], out, dtype=hidden.dtype)
    return b.scaled(b.cast(out, hidden.dtype), branch.scale)
