"""Mixture of experts as one QMoE node, for ONNX Runtime 1.31 and later on the CPU.

Older ones refuse `accuracy_level`, and decode the experts of a layer anew for each token. The operator knows
softmax routing only: it is given the experts' ranks to choose by, and the finished weights to sum with.
Source: ONNX Runtime contrib operators, com.microsoft.QMoE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...graph.blocks import Mixture
from ...graph.errors import UsageError
from ...graph.graph import Layer, Weight
from ...graph.roles import Role
from ...graph.tensor import Arrays, Read, RowsOf, TensorView
from ...quantize.encodings.int_block import IntBlock32
from .builder import MICROSOFT, GraphBuilder
from .linear import ACCURACY_LEVEL
from .store import WeightStore

MINIMUM_RUNTIME = "1.31"


class Interleaved(RowsOf):
    """Rows of two equal tensors by turns, as the operator wants gate and up: [E, 2M, H] of two [E, M, H]."""

    def __init__(self, name: str, first: TensorView, second: TensorView) -> None:
        n_experts, n_rows, n_cols = first.shape
        super().__init__(name, first.dtype, (n_experts, 2 * n_rows, n_cols))
        self._both = (first, second)

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        low, high = start // 2, -(-stop // 2)
        pairs = zip(*(read(view, low, high) for view in self._both), strict=True)
        woven = (np.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]) for pair in pairs)
        return tuple(rows[start - 2 * low : stop - 2 * low] for rows in woven)

    def place(self, row: int) -> tuple[str, int]:
        return self._both[0].place(row // 2)

    def sources(self) -> Sequence[TensorView]:
        return self._both


class EveryOther(RowsOf):
    """One of the two tensors of an interleaved one; `second` says which."""

    def __init__(self, view: TensorView, *, second: bool) -> None:
        n_experts, n_rows, n_cols = view.shape
        super().__init__(view.name, view.dtype, (n_experts, n_rows // 2, n_cols))
        self._view, self._offset = view, int(second)

    def _take(self, read: Read, start: int, stop: int) -> Arrays:
        return tuple(rows[self._offset :: 2] for rows in read(self._view, 2 * start, 2 * stop))

    def sources(self) -> Sequence[TensorView]:
        return (self._view,)


def fused_experts(
    b: GraphBuilder, store: WeightStore, layer: Layer, block: Mixture, x: str, ranks: str, weights: str
) -> str:
    """Weighted sum [T, H] of each token's experts. ranks and weights are float32 [T, E].

    Raises: UsageError for experts that the operator cannot take.
    """
    prefix = f"model.layers.{layer.index}.feed_forward.experts"
    gate, up, down = (layer.weights[role] for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN))
    gate_up = Weight(gate.role, gate.layer, Interleaved(f"{prefix}.gate_up_proj", gate.view, up.view))
    first = store.add(gate_up.view.name, [gate_up], stack=block.n_experts)
    second = store.add(f"{prefix}.down_proj", [down], stack=block.n_experts)
    encoding = first.encoding
    if not isinstance(encoding, IntBlock32) or second.encoding is not encoding:
        raise UsageError(
            f"--onnx-moe qmoe: QMoE takes experts of 4 or 8 bits whose hidden size {gate.view.n_cols} and expert size "
            f"{down.view.n_cols} are multiples of 32; layer {layer.index} has {encoding.name}, {second.encoding.name}"
        )
    return b.op(
        "QMoE",
        x, b.from_float32(ranks), *first.parts[:2], "", *second.parts[:2], "", "", "", "",
        first.parts[2], second.parts[2], "", b.from_float32(weights),
        domain=MICROSOFT, k=block.top_k, activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0,
        normalize_routing_weights=0, expert_weight_bits=encoding.bits, block_size=encoding.block,
        accuracy_level=ACCURACY_LEVEL, weights_prepacked=0,
    )  # fmt: skip
