"""Which weights an MLX folder of an LFM2 graph holds, and in which float type.

| the model has | mlx-lm |
|---|---|
| a head of its own, head_dim other than hidden_size / heads, no attention or no conv layer | cannot express it: refused |
| routed_scaling_factor, norm_topk_prob, use_expert_bias, conv_bias | computes it |
| torch_dtype in its config | casts all but the expert biases to it before anything else |

Source: mlx-lm `mlx_lm/models/lfm2.py`, `mlx_lm/models/lfm2_moe.py`, `mlx_lm/convert.py`.
"""

from __future__ import annotations

from dataclasses import replace

from ...convert.errors import UsageError
from ...convert.model.config import ModelConfig
from ...convert.model.dtypes import DType, Float32
from ...convert.model.graph import Role, Weight, WeightGraph
from ...convert.model.tensor import TensorView
from ...quantize.encoding import get_encoding

_CASTS = {"bfloat16": DType.BF16, "float16": DType.F16, "float32": DType.F32}


class _CastTensor(TensorView):
    """A tensor rounded to another float type."""

    def __init__(self, base: TensorView, dtype: DType) -> None:
        super().__init__(base.name, dtype, base.shape)
        self._base = base

    def _rows(self, start: int, stop: int) -> Float32:
        floats = get_encoding(self.dtype.value)
        return floats.decode(*floats.encode(self._base.rows(start, stop)))


def stored_weights(graph: WeightGraph, quant: str) -> list[Weight]:
    """Every weight in the float type it is stored or scaled in.

    Raises: UsageError for what mlx-lm has no representation of.
    """
    _refuse_inexpressible(graph)
    cast = DType.BF16 if quant == "bf16" else _CASTS.get(str(graph.config.raw.get("torch_dtype")))
    return [_cast(weight, cast) for weight in graph.weights()]


def _cast(weight: Weight, dtype: DType | None) -> Weight:
    if dtype in (None, weight.view.dtype) or weight.role is Role.EXPERT_BIAS:
        return weight
    return replace(weight, view=_CastTensor(weight.view, dtype))


def _refuse_inexpressible(graph: WeightGraph) -> None:
    config: ModelConfig = graph.config
    reasons = []
    if not graph.is_tied:
        reasons.append("a head other than the embedding")
    if config.q_size != config.hidden_size:
        reasons.append(f"{config.n_heads} heads of {config.head_dim} with hidden_size {config.hidden_size}")
    if len(set(config.operators)) == 1:
        reasons.append(f"layers that are all '{config.operators[0].value}'")
    if reasons:
        raise UsageError(f"mlx-lm's LFM2 has no {'; no '.join(reasons)}: choose another target")
