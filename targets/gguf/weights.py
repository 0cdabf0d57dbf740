"""Which weights a GGUF of an LFM2 graph holds: those of the graph, as far as llama.cpp can express them.

Three things the format has no field for are settled here, since llama.cpp's own converter drops the
first, writes a file that does not load for the second, and misses the rest without a word:

| the model has | the file gets |
|---|---|
| routed_scaling_factor ≠ 1 | the factor, multiplied into the experts' down projections |
| use_expert_bias false | expert biases of zero, which the loader demands |
| norm_topk_prob false, conv_bias true, heads that do not fill the hidden size | a refusal |

Source: llama.cpp `src/models/lfm2.cpp`, `src/models/lfm2moe.cpp`, `src/llama-graph.cpp`, `build_moe_ffn`.
"""

from __future__ import annotations

from dataclasses import replace

from ...convert.errors import UsageError
from ...convert.model.config import ModelConfig
from ...convert.model.graph import Role, Weight, WeightGraph
from ...convert.model.tensor import ScaledTensor, ZeroTensor
from ..target import Address
from .names import tensor_name


def stored_weights(graph: WeightGraph) -> dict[Address, Weight]:
    """Every weight of the file, in the graph's order.

    Raises: UsageError for what llama.cpp has no representation of.
    """
    _refuse_inexpressible(graph.config)
    stored = {(weight.role, weight.layer): _scaled(weight, graph.config) for weight in graph.weights()}
    moe = graph.config.moe
    if moe and not moe.use_expert_bias:
        for address in [address for address in stored if address[0] is Role.ROUTER]:
            bias = (Role.EXPERT_BIAS, address[1])
            stored[bias] = Weight(*bias, ZeroTensor(tensor_name(bias), (moe.n_experts,)))
    return stored


def _scaled(weight: Weight, config: ModelConfig) -> Weight:
    factor = config.moe.routed_scaling_factor if config.moe else 1.0
    if weight.role is not Role.EXPERT_DOWN or factor == 1.0:
        return weight
    return replace(weight, view=ScaledTensor(weight.view, factor))


def _refuse_inexpressible(config: ModelConfig) -> None:
    reasons = []
    if config.moe and not config.moe.norm_topk_prob:
        reasons.append("norm_topk_prob false (it always normalises the weights of the chosen experts)")
    if config.conv_bias:
        reasons.append("conv_bias true (its short convolution has no biases)")
    if config.q_size != config.hidden_size:
        reasons.append(f"{config.n_heads} heads of {config.head_dim} with hidden_size {config.hidden_size}")
    if reasons:
        raise UsageError(f"llama.cpp has no representation of {'; '.join(reasons)}: choose another target")
