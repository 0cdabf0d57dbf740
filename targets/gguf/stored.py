"""Which tensors a GGUF holds: the weights of the graph, as llama.cpp's graph of the architecture multiplies with them.

| the model has | the file gets |
|---|---|
| a mixture of experts whose weights are scaled | the factor, multiplied into the experts' down projections |
| a mixture without biases, where the loader demands them | biases of zero |
| layers with and without windows | of the latter what the default table of the rope is divided by, 1e30 for a pair that does not turn |

llama.cpp's own converter drops the first, and writes a file that does not load for the second.
Source: llama.cpp `src/llama-graph.cpp`, `build_moe_ffn`; `conversion/gemma.py`, `generate_extra_tensors`; for the
order `conversion/base.py`, `prepare_tensors`, and `src/llama-model-loader.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...graph.blocks import Mixture
from ...graph.config import ModelConfig
from ...graph.families.family import Family
from ...graph.graph import WeightGraph
from ...graph.roles import Role
from ...graph.rotary import frequency_factors
from ...graph.tensor import ArrayTensor, ScaledTensor, TensorView, ZeroTensor
from ...quantize.gguf_file.tensor_names import ROPE_FACTORS, gguf_names, tensor_name
from .expressible import any_attention, refuse_inexpressible

_AT_REST = np.float32(1e30)


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: a weight by its GGUF name, or a constant that follows from the blocks, which has no role."""

    name: str
    view: TensorView
    role: Role | None = None
    layer: int | None = None

    @property
    def size(self) -> int:
        return self.view.n_rows * self.view.n_cols


def converter_order(tensor: Stored, family: Family) -> str:
    """Sort key of `convert_hf_to_gguf.py`: constants, then a checkpoint's names as text, so layer 10 before 2."""
    return "" if tensor.role is None else family.tensor_name(tensor.role, tensor.layer)


def quantizer_order(tensor: Stored, family: Family) -> tuple[int, str]:
    """Sort key of `llama-quantize`: layers by number, names as text within one."""
    return -1 if tensor.layer is None else tensor.layer, tensor.name


def stored_tensors(graph: WeightGraph) -> tuple[Stored, ...]:
    """Every tensor of the file, those of the graph in its order.

    Raises: UsageError for what llama.cpp has no representation of.
    """
    refuse_inexpressible(graph.config)
    return (*_constants(graph.config), *_weights(graph), *_absent_biases(graph.config))


def _weights(graph: WeightGraph) -> Iterator[Stored]:
    mixture = graph.config.mixture
    factor = 1.0 if mixture is None else mixture.scaling
    for weight in graph.weights():
        is_scaled = weight.role is Role.EXPERT_DOWN and factor != 1
        yield _stored(
            graph.config, weight.role, weight.layer, ScaledTensor(weight.view, factor) if is_scaled else weight.view
        )


def _stored(config: ModelConfig, role: Role, layer: int | None, view: TensorView) -> Stored:
    return Stored(tensor_name((role, layer), config.family), view, role, layer)


def _absent_biases(config: ModelConfig) -> Iterator[Stored]:
    for layer, mixture in config.of_kind(Mixture).items():
        if not mixture.has_bias and Role.EXPERT_BIAS in gguf_names(config.family).demands:
            zeros = ZeroTensor(tensor_name((Role.EXPERT_BIAS, layer), config.family), (mixture.n_experts,))
            yield _stored(config, Role.EXPERT_BIAS, layer, zeros)


def _constants(config: ModelConfig) -> Iterator[Stored]:
    attention = any_attention(config)
    rope = attention.rope if attention.window is None else None
    if rope is not None and gguf_names(config.family).has_windows:
        yield Stored(ROPE_FACTORS, ArrayTensor(ROPE_FACTORS, np.minimum(frequency_factors(rope), _AT_REST)))
