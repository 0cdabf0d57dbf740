"""The gated short convolution."""

from __future__ import annotations

from ...graph.blocks import ShortConv
from ...graph.errors import UsageError
from ...graph.graph import Layer
from ...graph.roles import Role
from .encoder import convolve_whole
from .functions import causal_conv
from .linear import add_bias, linear
from .prelude import Context


def short_conv(context: Context, block: ShortConv, layer: Layer, x: str) -> str:
    """out(C * conv(B * x)), depthwise over the last `width` inputs, which are kept in `past_conv`."""
    if not (block.is_causal or context.is_whole):
        raise UsageError("onnx: cannot say a centred short convolution, whose state would hold inputs to come")
    b, store = context.b, context.store
    prefix, i = f"model.layers.{layer.index}.conv", layer.index
    (projected,) = linear(b, store, x, f"{prefix}.in_proj", [layer.weights[Role.CONV_IN]])
    projected = add_bias(b, store, layer, Role.CONV_IN_BIAS, projected)
    gate_in, gate_out, value = b.ops("Split", projected, outputs=[None] * 3, axis=2, num_outputs=3)
    gated = b.op("Mul", gate_in, value)
    if block.is_biased:  # then padding is not zero
        gated = b.op("Mul", gated, context.prelude.token_mask)
    weight = layer.weights[Role.CONV_KERNEL]
    n_channels = weight.view.n_rows
    kernel = store.add(f"{prefix}.conv", [weight], (n_channels, 1, block.width)).parts[0]
    inputs = b.op("Transpose", gated, perm=[0, 2, 1])
    if context.is_whole:
        mixed = convolve_whole(context, block, layer, inputs, kernel)
    else:
        caches = {"past": f"past_conv.{i}", "present": f"present_conv.{i}"}
        mixed = causal_conv(b, inputs, kernel, width=block.width, n_channels=n_channels, **caches)
    mixed = add_bias(b, store, layer, Role.CONV_KERNEL_BIAS, b.op("Transpose", mixed, perm=[0, 2, 1]))
    gated = b.op("Mul", gate_out, mixed)
    (out,) = linear(b, store, gated, f"{prefix}.out_proj", [layer.weights[Role.CONV_OUT]])
    return add_bias(b, store, layer, Role.CONV_OUT_BIAS, out)
