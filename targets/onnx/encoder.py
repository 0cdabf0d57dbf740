"""The graph of a model that gives vectors: a text in one run, without caches.

| input, output | shape |
|---|---|
| `input_ids`, `attention_mask` | int64 [batch_size, sequence_length]; 0 for padding, on either side |
| `last_hidden_state` | float32 [batch_size, sequence_length, hidden] |
| `sentence_embedding` | float32 [batch_size, vector], of a model that pools |
| `token_embeddings` | float32 [batch_size, sequence_length, vector], of one that does not |

Where texts have one vector, padding is nothing: it is zero, and no token sees it. Where every token has one, what the
mask leaves out still has vectors, which late interaction uses for the tokens that it adds to a query: such a position
sees the tokens, no token attends to it, and convolutions see it as they see any.
Source: sentence-transformers' ONNX backend; PyLate, `attend_to_expansion_tokens`.
"""

from __future__ import annotations

from typing import Any

from ...graph.blocks import Attention, Pooling, ShortConv, VectorHead
from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.graph import Layer, WeightGraph
from ...graph.roles import Role
from .builder import GraphBuilder
from .linear import linear
from .prelude import Context, Prelude, Span, far_below
from .rotary import rotations, turn
from .store import WeightStore

HIDDEN, POOLED, EACH = "last_hidden_state", "sentence_embedding", "token_embeddings"
# Of a vector of zeros, which no division may meet.
_LEAST_LENGTH = 1e-12


def encoder_signature(config: ModelConfig) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs."""
    from onnx import TensorProto, helper

    value, tokens = helper.make_tensor_value_info, ["batch_size", "sequence_length"]
    inputs = [value(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")]
    is_per_token = config.vectors is not None and config.vectors.is_per_token
    name, shape = (EACH, tokens) if is_per_token else (POOLED, tokens[:1])
    outputs = [
        value(HIDDEN, TensorProto.FLOAT, [*tokens, config.hidden_size]),
        value(name, TensorProto.FLOAT, [*shape, config.n_outputs]),
    ]
    return inputs, outputs


def emit_encoder_prelude(b: GraphBuilder, store: WeightStore, config: ModelConfig) -> Prelude:
    """What layers share. Raises: UsageError for blocks that only a graph with caches has."""
    from onnx import TensorProto

    _refuse(config)
    sequence = b.op("Shape", "input_ids", start=1)
    mask = b.cast("attention_mask", TensorProto.FLOAT)
    far, none = far_below(b), b.constant(0, b.float_dtype)
    if config.vectors is not None and config.vectors.is_per_token:
        token_mask = b.constant([[[1]]], b.float_dtype)
        seen = b.op("Unsqueeze", b.op("Greater", mask, b.scalar(0)), b.ints(1, 2))
    else:
        token_mask = b.from_float32(b.op("Unsqueeze", mask, b.ints(2)))
        seen = b.op("Equal", b.op("Unsqueeze", mask, b.ints(1, 3)), b.op("Unsqueeze", mask, b.ints(1, 2)))
    if config.is_causal:
        places = _places(b)
        seen = b.op("And", seen, b.op("LessOrEqual", places, b.op("Unsqueeze", places, b.ints(1))))
    bias = b.op("Unsqueeze", b.op("Where", seen, none, far), b.ints(1))  # of every head of keys, and its queries
    span = Span(attention_bias=bias, last_position="", total_length="")
    return Prelude(
        token_mask=token_mask,
        spans={None: span},
        rotations=rotations(b, store, config, {}, sequence=sequence, never_inside=True),
    )


def _refuse(config: ModelConfig) -> None:
    if len({mixer.is_causal for mixer in config.mixers}) > 1:
        raise UsageError("onnx: cannot say layers of which some see later tokens and others do not")
    if any(block.window is not None for block in config.of_kind(Attention).values()):
        raise UsageError("onnx: cannot say sliding-window attention of a model that gives vectors")


def _places(b: GraphBuilder) -> str:
    """int64 [S]: 0, 1, …"""
    return b.op(
        "Range", b.constant(0, "<i8"), b.op("Squeeze", b.op("Shape", "input_ids", start=1)), b.constant(1, "<i8")
    )


def attend_whole(context: Context, block: Attention, i: int, qk: str, v: str) -> str:
    """The values [B, S, n_heads * head_dim] that each head sees, of queries and keys side by side before they turn."""
    b, n_kv, d = context.b, block.n_kv_heads, block.head_dim
    if block.rope is not None:
        n_heads = block.n_heads + n_kv
        qk = turn(b, qk, context.prelude.rotations[block.rope], head_dim=d, n_heads=n_heads)
    q, k = b.ops("Split", qk, b.ints(block.q_size, block.kv_size), outputs=(None, None), axis=-1)
    q = b.op("Transpose", b.reshape(q, 0, 0, n_kv, -1, d), perm=[0, 2, 3, 1, 4])
    k = b.op("Transpose", b.reshape(k, 0, 0, n_kv, 1, d), perm=[0, 2, 3, 4, 1])
    v = b.op("Transpose", b.reshape(v, 0, 0, n_kv, 1, d), perm=[0, 2, 3, 1, 4])
    scores = b.op("MatMul", b.op("Mul", q, b.constant(block.scale, b.float_dtype)), k)
    weights = b.op("Softmax", b.op("Add", scores, context.prelude.spans[None].attention_bias), axis=-1)
    heads = b.op("Transpose", b.op("MatMul", weights, v), perm=[0, 3, 1, 2, 4])
    return b.reshape(heads, 0, 0, block.q_size)


def convolve_whole(context: Context, block: ShortConv, layer: Layer, inputs: str, kernel: str) -> str:
    """Each channel [B, H, S] times its taps, over the inputs before, or on both sides."""
    before = block.width - 1 if block.is_causal else block.width // 2
    n_channels = layer.weights[Role.CONV_KERNEL].view.n_rows
    return context.b.op("Conv", inputs, kernel, group=n_channels, pads=[before, block.width - 1 - before])


def emit_vectors(b: GraphBuilder, store: WeightStore, graph: WeightGraph, head: VectorHead, normed: str) -> None:
    """The vectors of the normed rows [B, S, H], and these themselves."""
    b.op("Identity", b.to_float32(normed), output=HIDDEN)
    rows = normed if head.is_per_token else b.op("MatMul", b.from_float32(_shares(b, head.pooling)), normed)
    projection = graph.top.get(Role.PROJECTION)
    if projection is not None:
        (rows,) = linear(b, store, rows, "1_Dense.linear", [projection])
    vectors = b.to_float32(rows)
    if head.is_normalised:
        length = b.op("ReduceL2", vectors, b.ints(-1), keepdims=1)
        vectors = b.op("Div", vectors, b.op("Max", length, b.scalar(_LEAST_LENGTH)))
    if head.is_per_token:
        b.op("Identity", vectors, output=EACH)
    else:
        b.op("Squeeze", vectors, b.ints(1), output=POOLED)


def _shares(b: GraphBuilder, pooling: Pooling) -> str:
    """What part each position has in the vector: float32 [B, 1, S]."""
    from onnx import TensorProto

    mask = b.cast("attention_mask", TensorProto.FLOAT)
    if pooling is Pooling.MEAN:
        shares = b.op("Div", mask, b.op("ReduceSum", mask, b.ints(1), keepdims=1))
    else:
        place = b.op("ArgMax", mask, axis=1, keepdims=1, select_last_index=int(pooling is Pooling.LAST))
        shares = b.cast(b.op("Equal", _places(b), place), TensorProto.FLOAT)
    return b.op("Unsqueeze", shares, b.ints(1))
