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
    """The stream [B, S, H], of which the last branch is not added yet: the next norm adds it in the same node.

    One that half precision cannot hold is float32, and so are its norms; blocks are given activations as all others.
    """

    def __init__(self, context: Context, embedded: str, *, scale: float) -> None:
        self._context, self._branch = context, ""
        self._is_wide = context.is_wide
        self._hidden = self._scaled(self._widened(embedded), scale)

    def _widened(self, x: str) -> str:
        return self._context.b.to_float32(x) if self._is_wide else x

    def _narrowed(self, x: str) -> str:
        return self._context.b.from_float32(x) if self._is_wide else x

    def _scaled(self, x: str, scale: float) -> str:
        b = self._context.b
        return x if scale == 1 else b.op("Mul", x, b.constant(scale, "<f4" if self._is_wide else b.float_dtype))

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
            out = self._widened(_EMITTERS[type(block)](self._context, block, layer, x))
            if branch.post_norm is not None:
                out = norm(b, branch.post_norm, out, self._gain(layer.weights[branch.post_norm_role]))
            return self._scaled(out, branch.scale)

    def normed(self, norm_: Norm, gain: Weight) -> str:
        """The norm of the stream; what is pending is added in the same node."""
        b, name = self._context.b, self._gain(gain)
        if not self._branch:
            return self._narrowed(norm(b, norm_, self._hidden, name))
        normed, _, _, self._hidden = b.ops(
            "SkipSimplifiedLayerNormalization", self._hidden, self._branch, name,
            outputs=(None, "", "", None), domain=MICROSOFT, epsilon=norm_.eps,
        )  # fmt: skip
        self._branch = ""
        return self._narrowed(normed)

    def summed(self) -> str:
        """The stream as a block is given it."""
        if self._branch:
            self._hidden, self._branch = self._context.b.op("Add", self._hidden, self._branch), ""
        return self._narrowed(self._hidden)

    def _gain(self, weight: Weight) -> str:
        return self._widened(self._context.store.add(weight.view.name, [weight], weight.shape).parts[0])


def norm(b: GraphBuilder, norm_: Norm, x: str, gain: str) -> str:
    """Root-mean-square norm over the last axis."""
    return b.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=norm_.eps, stash_type=1)
