"""The residual stream through the branches of all layers: norm, block, norm of what it gives, sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...graph.blocks import Attention, Branch, Dense, Mixer, Mixture, Norm, ShortConv
from ...graph.graph import Layer, Weight
from .attention import attention
from .builder import MICROSOFT, GraphBuilder
from .dense import dense
from .mixture import mixture
from .prelude import Context
from .short_conv import short_conv

# Each emits its block on x [B, S, H] and returns the name of the result, of the same shape.
_EMITTERS: Mapping[type, Callable[..., str]] = {
    ShortConv: short_conv,
    Attention: attention,
    Dense: dense,
    Mixture: mixture,
}


class Residual:
    """The stream [B, S, H], of which the last branch is not added yet: the next norm adds it in the same node."""

    def __init__(self, context: Context, hidden: str) -> None:
        self._context, self._hidden, self._branch = context, hidden, ""

    def run(self, layers: Sequence[Layer]) -> None:
        """Adds the branches of all layers."""
        for layer in layers:
            with self._context.b.scope(f"layers.{layer.index}"):
                for branch in layer.branches:
                    self._branch = self._emit(branch, layer)

    def _emit(self, branch: Branch, layer: Layer) -> str:
        b, block = self._context.b, branch.block
        x = self.normed(branch.norm, layer.weights[branch.norm_role]) if branch.norm else self.summed()
        with b.scope("operator" if isinstance(block, Mixer) else "feed_forward"):
            out = _EMITTERS[type(block)](self._context, block, layer, x)
            if branch.post_norm is not None:
                out = norm(b, branch.post_norm, out, self._gain(layer.weights[branch.post_norm_role]))
            return out if branch.scale == 1 else b.op("Mul", out, b.constant(branch.scale, b.float_dtype))

    def normed(self, norm_: Norm, gain: Weight) -> str:
        """The norm of the stream; what is pending is added in the same node."""
        b, name = self._context.b, self._gain(gain)
        if not self._branch:
            return norm(b, norm_, self._hidden, name)
        normed, _, _, self._hidden = b.ops(
            "SkipSimplifiedLayerNormalization", self._hidden, self._branch, name,
            outputs=(None, "", "", None), domain=MICROSOFT, epsilon=norm_.eps,
        )  # fmt: skip
        self._branch = ""
        return normed

    def summed(self) -> str:
        """The stream as it is."""
        if self._branch:
            self._hidden, self._branch = self._context.b.op("Add", self._hidden, self._branch), ""
        return self._hidden

    def _gain(self, weight: Weight) -> str:
        return self._context.store.add(weight.view.name, [weight], weight.shape).parts[0]


def norm(b: GraphBuilder, norm_: Norm, x: str, gain: str) -> str:
    """Root-mean-square norm over the last axis."""
    return b.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=norm_.eps, stash_type=1)
