"""The float type that each weight is stored or scaled in.

A torch_dtype in the config is one that mlx-lm casts all but the expert biases to, before anything else; without one the
checkpoint's own types stay.
Source: mlx-lm `mlx_lm/convert.py`, and the `cast_predicate` of its models.
"""

from __future__ import annotations

from dataclasses import replace

from ...graph.dtypes import TORCH_NAMES, DType, Float32
from ...graph.graph import WeightGraph
from ...graph.roles import Role
from ...graph.tensor import TensorView
from ...quantize.encoding import get_encoding
from ..kept import KeptWeight, kept_weights
from .parameters import mlx_names


class _CastTensor(TensorView):
    """A tensor rounded to another float type."""

    def __init__(self, base: TensorView, dtype: DType) -> None:
        super().__init__(base.name, dtype, base.shape)
        self._base = base

    def _rows(self, start: int, stop: int) -> Float32:
        floats = get_encoding(self.dtype.value)
        return floats.decode(*floats.encode(self._base.rows(start, stop)))

    def place(self, row: int) -> tuple[str, int]:
        return self._base.place(row)


def cast_weights(graph: WeightGraph, *, to_bfloat16: bool) -> list[KeptWeight]:
    """Every tensor that is stored, in its type and in model order; all in bfloat16 if that is the quant."""
    stated = graph.config.raw.get("torch_dtype") if graph.quantised_as is None else None
    dtype = DType.BF16 if to_bfloat16 else TORCH_NAMES.get(str(stated))
    return [_cast(weight, dtype) for weight in kept_weights(graph, apart=mlx_names(graph.config.family).tensors)]


def _cast(weight: KeptWeight, dtype: DType | None) -> KeptWeight:
    if dtype in (None, weight.view.dtype) or weight.role is Role.EXPERT_BIAS:
        return weight
    return replace(weight, view=_CastTensor(weight.view, dtype))
