"""The whole ONNX graph of a model, with the inputs and outputs that LFM2's clients feed.

| input                  | shape                                                      |
|------------------------|------------------------------------------------------------|
| input_ids              | int64 [batch_size, sequence_length]                        |
| attention_mask         | int64 [batch_size, total_sequence_length], 0 for padding   |
| num_logits_to_keep     | int64, rank 0; 0 keeps all                                 |
| past_conv.N            | [batch_size, hidden, conv_L_cache], for each conv layer N  |
| past_key_values.N.key, .value | [batch_size, kv_heads, past_sequence_length, head_dim], for each attention layer N |

Outputs: `logits` float32 [batch_size, num_logits, vocab], then `present_conv.N`, `present.N.key`,
`present.N.value` in the order of the past inputs, since clients match them by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...convert.errors import UsageError
from ...convert.model.config import ModelConfig, Operator
from ...convert.model.dtypes import Float32
from ...convert.model.graph import Role, WeightGraph
from ...convert.model.tensor import TensorView
from ...quantize.policy import Policy
from .builder import IR_VERSION, MICROSOFT, OPSETS, GraphBuilder
from .feed_forward import dense, mixture
from .functions import functions
from .linear import lookup, matmul
from .operators import Prelude, attention, norm, short_conv
from .store import Matrix, WeightStore

# Source: ONNX Runtime `group_query_attention_helper.h`, CheckRotaryCaches.
_HEAD_MULTIPLE = 16


class RotaryTable(TensorView):
    """cos or sin of position * inverse frequency, computed on demand: [context_length, head_dim / 2]."""

    def __init__(self, name: str, config: ModelConfig, function: np.ufunc) -> None:
        from ...convert.model.dtypes import DType

        super().__init__(name, DType.F32, (config.context_length, config.head_dim // 2))
        self._config, self._function = config, function

    def _rows(self, start: int, stop: int) -> Float32:
        exponents = np.arange(0, self._config.head_dim, 2, dtype=np.float32) / np.float32(self._config.head_dim)
        inverse = np.float32(1) / np.float32(self._config.rope_theta) ** exponents
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * inverse
        values: Float32 = self._function(angles)
        return values


@dataclass(frozen=True)
class OnnxGraph:
    """A finished graph and the weights it refers to."""

    proto: Any
    store: WeightStore


def activation_type(policy: Policy) -> int:
    """ONNX element type of activations and caches: half precision where norms are stored so."""
    from onnx import TensorProto

    is_half = any(rule.encoding == "F16" for rule in policy.rules)
    return int(TensorProto.FLOAT16 if is_half else TensorProto.FLOAT)


def build_graph(graph: WeightGraph, policy: Policy, data_path: str, *, fused_experts: bool) -> OnnxGraph:
    """Builds the graph and assigns every weight its place in the data files; reads no weight.

    Raises: UsageError for a size that an operator refuses.
    """
    from onnx import helper

    from ..._version import __version__

    config = graph.config
    if config.head_dim % _HEAD_MULTIPLE:
        raise UsageError(
            f"onnx: head_dim is {config.head_dim}; GroupQueryAttention rotates heads of a multiple of {_HEAD_MULTIPLE}"
        )
    b = GraphBuilder(activation_type(policy))
    store = WeightStore(policy, data_path)
    table = store.add("model.embed_tokens", [graph.top[Role.EMBED]])
    head = table if graph.is_tied else store.add("lm_head", [graph.top[Role.LM_HEAD]])
    with b.scope("prelude"):
        prelude = _prelude(b, store, config)
        hidden = b.op("Mul", lookup(b, table, "input_ids"), prelude.token_mask)
    hidden, branch = _layers(b, store, graph, hidden, prelude, fused_experts=fused_experts)
    with b.scope("head"):
        _head(b, store, graph, head, hidden, branch)
    inputs, outputs = _signature(b, config)
    proto = helper.make_model(
        helper.make_graph(
            b.nodes, "lfm2", inputs, outputs, initializer=[*b.inline, *(i.to_proto() for i in store.initializers)]
        ),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        functions=functions(config, b),
        ir_version=IR_VERSION,
        producer_name="lfm-convert",
        producer_version=__version__,
    )
    return OnnxGraph(proto, store)


def _layers(
    b: GraphBuilder, store: WeightStore, graph: WeightGraph, hidden: str, prelude: Prelude, *, fused_experts: bool
) -> tuple[str, str]:
    """Runs all layers; returns the residual stream and the last branch still to be added to it."""
    config, branch = graph.config, ""
    for layer in graph.layers:
        with b.scope(f"layers.{layer.index}"):
            hidden, normed = _add_norm(b, store, graph, layer.weights[Role.OPERATOR_NORM], hidden, branch)
            with b.scope("operator"):
                operator = short_conv if layer.operator is Operator.SHORT_CONV else attention
                branch = operator(b, store, config, layer, normed, prelude)
            hidden, normed = _add_norm(b, store, graph, layer.weights[Role.FFN_NORM], hidden, branch)
            with b.scope("feed_forward"):
                if layer.is_moe:
                    tokens = b.reshape(normed, -1, config.hidden_size)
                    summed = mixture(b, store, config, layer, tokens, fused=fused_experts)
                    branch = b.op("Reshape", summed, b.op("Shape", normed))
                else:
                    branch = dense(b, store, layer, normed)
    return hidden, branch


def _add_norm(
    b: GraphBuilder, store: WeightStore, graph: WeightGraph, gain: Any, hidden: str, branch: str
) -> tuple[str, str]:
    """hidden + branch, and its norm, in one fused node."""
    name = store.add(gain.view.name, [gain], gain.shape).parts[0]
    if not branch:
        return hidden, norm(b, graph.config, hidden, name)
    normed, _, _, total = b.ops(
        "SkipSimplifiedLayerNormalization", hidden, branch, name,
        outputs=(None, "", "", None), domain=MICROSOFT, epsilon=graph.config.norm_eps,
    )  # fmt: skip
    return total, normed


def _prelude(b: GraphBuilder, store: WeightStore, config: ModelConfig) -> Prelude:
    from onnx import TensorProto

    table_type = "F16" if b.is_half else "F32"
    cos = store.add_constant("rotary.cos", RotaryTable("rotary.cos", config, np.cos), table_type)
    sin = store.add_constant("rotary.sin", RotaryTable("rotary.sin", config, np.sin), table_type)
    batch, sequence = b.op("Shape", "input_ids", end=1), b.op("Shape", "input_ids", start=1)
    total = b.cast(b.op("Shape", "attention_mask", start=1), TensorProto.INT32)
    mask = b.cast("attention_mask", TensorProto.FLOAT)  # WebGPU has no int64
    new = b.op("Slice", mask, b.op("Neg", sequence), b.ints(np.iinfo(np.int64).max), b.ints(1))
    is_same = b.op("Equal", b.op("Unsqueeze", new, b.ints(1, 3)), b.op("Unsqueeze", mask, b.ints(1, 2)))
    # Far below any score, yet finite in half precision.
    far, none = b.constant(-30000 if b.is_half else -1e9, b.float_dtype), b.constant(0, b.float_dtype)
    return Prelude(
        token_mask=b.from_float32(b.op("Unsqueeze", new, b.ints(2))),
        attention_bias=b.op("Where", is_same, none, far),
        last_position=b.op("Expand", b.op("Sub", total, b.constant(1, "<i4")), batch),
        total_length=total,
        cos=cos,
        sin=sin,
    )


def _head(b: GraphBuilder, store: WeightStore, graph: WeightGraph, head: Matrix, hidden: str, branch: str) -> None:
    """Final norm and logits, of the last num_logits_to_keep positions only."""
    from onnx import TensorProto

    _, normed = _add_norm(b, store, graph, graph.top[Role.FINAL_NORM], hidden, branch)
    first = b.op("Mul", "num_logits_to_keep", b.ints(-1))  # [1], as onnxruntime-genai feeds it, or of rank 0
    kept = b.op("Slice", normed, first, b.ints(np.iinfo(np.int64).max), b.ints(1))
    if b.is_half:
        b.op("Cast", matmul(b, kept, head), to=TensorProto.FLOAT, output="logits")
    else:
        matmul(b, kept, head, output="logits")


def _signature(b: GraphBuilder, config: ModelConfig) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    value, caches = helper.make_tensor_value_info, b.float_type
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        value("num_logits_to_keep", TensorProto.INT64, []),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch_size", "num_logits", config.vocab_size])]
    for i, operator in enumerate(config.operators):
        if operator is Operator.SHORT_CONV:
            shape: list[str | int] = ["batch_size", config.hidden_size, config.conv_width]
            inputs.append(value(f"past_conv.{i}", caches, shape))
            outputs.append(value(f"present_conv.{i}", caches, shape))
            continue
        for kind in ("key", "value"):
            past: list[str | int] = ["batch_size", config.n_kv_heads, "past_sequence_length", config.head_dim]
            total: list[str | int] = ["batch_size", config.n_kv_heads, "total_sequence_length", config.head_dim]
            inputs.append(value(f"past_key_values.{i}.{kind}", caches, past))
            outputs.append(value(f"present.{i}.{kind}", caches, total))
    return inputs, outputs
