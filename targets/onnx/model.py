"""The whole ONNX graph of a model: embedding, layers, head; `signature` says what clients feed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...graph.graph import WeightGraph
from ...graph.roles import Role
from ...quantize.policy import Policy
from .builder import IR_VERSION, OPSETS, GraphBuilder
from .caches import Kept, kept_positions
from .encoder import emit_encoder_prelude, emit_vectors, encoder_signature
from .linear import lookup, matmul
from .prelude import Context, emit_prelude
from .residual import Residual
from .signature import signature
from .store import Matrix, WeightStore

PRODUCER = "lfm-convert"


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


def build_graph(
    graph: WeightGraph, policy: Policy, data_path: str, *, fused_experts: bool, whole_caches: bool
) -> OnnxGraph:
    """Builds the graph and assigns every weight its place in the data files; reads no weight.

    Raises: UsageError for a block, or a size, that no operator has.
    """
    b = GraphBuilder(activation_type(policy))
    store, kept = WeightStore(policy, data_path), kept_positions(graph.config, is_whole=whole_caches)
    table = store.add("model.embed_tokens", [graph.top[Role.EMBED]])
    vectors = graph.config.vectors
    head = table if graph.is_tied else store.add("lm_head", [graph.top[Role.LM_HEAD]])
    with b.scope("prelude"):
        if vectors is None:
            prelude = emit_prelude(b, store, graph.config, kept)
        else:
            prelude = emit_encoder_prelude(b, store, graph.config)
        embedded = b.op("Mul", lookup(b, table, "input_ids"), prelude.token_mask)  # zeros for padding
        is_wide = graph.config.family.onnx.is_wide
        context = Context(b, store, prelude, kept, fused_experts, is_wide, is_whole=vectors is not None)
        residual = Residual(context, embedded, scale=graph.config.embedding_scale)
    residual.run(graph.layers)
    with b.scope("head"):
        normed = residual.normed(graph.config.final_norm, graph.top[Role.FINAL_NORM])
        if vectors is None:
            _head(b, head, normed, graph.config.logit_scale)
        else:
            emit_vectors(b, store, graph, vectors, normed)
    return OnnxGraph(_proto(b, store, graph, kept), store)


def _head(b: GraphBuilder, head: Matrix, normed: str, scale: float) -> None:
    """Logits of the last num_logits_to_keep positions only."""
    from onnx import TensorProto

    first = b.op("Mul", "num_logits_to_keep", b.ints(-1))  # [1], as onnxruntime-genai feeds it, or of rank 0
    kept = b.op("Slice", normed, first, b.ints(np.iinfo(np.int64).max), b.ints(1))
    if scale != 1:
        kept = b.op("Mul", kept, b.constant(scale, b.float_dtype))
    if b.is_half:
        b.op("Cast", matmul(b, kept, head), to=TensorProto.FLOAT, output="logits")
    else:
        matmul(b, kept, head, output="logits")


def _proto(b: GraphBuilder, store: WeightStore, graph: WeightGraph, kept: Kept) -> Any:
    from onnx import helper

    from ..._version import __version__

    is_talker = graph.config.vectors is None
    inputs, outputs = signature(graph.config, kept, b.float_type) if is_talker else encoder_signature(graph.config)
    name = graph.config.family.model_type.partition("_")[0]  # without the kind, such as `_moe`
    stored = [initializer.to_proto() for initializer in store.initializers]
    return helper.make_model(
        helper.make_graph(b.nodes, name, inputs, outputs, initializer=[*b.inline, *stored]),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        functions=b.functions,
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=__version__,
    )
