"""The graph's forward as a quantized file computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import Weight
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role


class Int8Activations(Forward):
    """The graph's forward with XNNPACK's arithmetic in quantized linear layers, each row of inputs by itself.

    A code one step off changes every later one, so the last bit counts: the zero point is added after rounding, the
    scale is the inverse of its stored inverse, and codes are summed as the integers they are (in float64, exactly).
    Source: XNNPACK `xnn_f32_qd8_asymmetric_quantization_params`, `xnn_f32_qs8_vcvt`, `xnn_qd8_f32_qb4w_gemm`.
    """

    def linear(
        self, x: Float32, weight: Weight, bias: Weight | None = None, *, expert: int | None = None, **rows: Any
    ) -> Float32:
        if weight.role is Role.ROUTER:
            return super().linear(x, weight, bias, expert=expert, **rows)
        one, lowest, highest = np.float32([1, -128, 127])
        low, high = (np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0))
        scale = np.float32(255) / (high - low)
        from_low, from_high = lowest - low * scale, highest - high * scale
        zero = np.where(low * scale + high * scale - one > 0, from_low, from_high)
        zero = np.rint(np.clip(zero, lowest, highest))
        step = one / scale
        codes = np.clip(np.rint(x * (one / step)), lowest - zero, highest - zero)
        view = weight.view
        count = view.n_rows if expert is None else view.shape[1]
        rows = self.load(view, (expert or 0) * count, (expert or 0) * count + count)
        sums = codes.astype(np.float64) @ rows.T.astype(np.float64)
        products = np.asarray(sums.astype(np.float32) * step, np.float32)
        return products if bias is None else products + self.vector(bias)


class FloatExperts(Int8Activations):
    """On x86 `quantized_moe_ffn` multiplies the experts' weights by float32 activations."""

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        base = Forward if "expert" in rows else Int8Activations
        return base.linear(self, x, weight, bias, **rows)
