"""The inputs and outputs of a graph, in the order in which clients match them.

| input                  | shape                                                      |
|------------------------|------------------------------------------------------------|
| input_ids              | int64 [batch_size, sequence_length]                        |
| attention_mask         | int64 [batch_size, total_sequence_length], 0 for padding   |
| num_logits_to_keep     | int64, rank 0; 0 keeps all                                 |
| past_conv.N            | [batch_size, hidden, width], for each convolution, N being its layer |
| past_key_values.N.key, .value | [batch_size, kv_heads, past_sequence_length, head_dim], for each attention; where a
cache keeps a window, past_window_length, which does not grow beyond it |

Outputs: `logits` float32 [batch_size, num_logits, vocab], then `present_conv.N`, `present.N.key`,
`present.N.value` in the order of the past inputs, since clients match them by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...graph.blocks import Mixer, ShortConv
from ...graph.config import ModelConfig
from .caches import Kept

# The length of a cache that keeps a window.
WINDOW_LENGTH = "past_window_length"

# Sizes of a cache before and after a run; a text is a size that the runtime finds.
_Shape = list[str | int]


def signature(config: ModelConfig, kept: Kept, float_type: int) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs; caches are of the activations' type."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        value("num_logits_to_keep", TensorProto.INT64, []),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["batch_size", "num_logits", config.vocab_size])]
    for i, mixer in enumerate(config.mixers):
        for past, present, before, after in _caches(i, mixer, config.hidden_size, kept.get(i)):
            inputs.append(value(past, float_type, before))
            outputs.append(value(present, float_type, after))
    return inputs, outputs


def _caches(layer: int, mixer: Mixer, hidden: int, n_kept: int | None) -> Iterator[tuple[str, str, _Shape, _Shape]]:
    """What a layer remembers: the names of past and present, and their shapes."""
    if isinstance(mixer, ShortConv):
        shape: _Shape = ["batch_size", hidden, mixer.width]
        yield f"past_conv.{layer}", f"present_conv.{layer}", shape, shape
        return
    is_whole = n_kept is None
    past = "past_sequence_length" if is_whole else WINDOW_LENGTH
    total = "total_sequence_length" if is_whole else "window_length"
    for part in ("key", "value"):
        before: _Shape = ["batch_size", mixer.n_kv_heads, past, mixer.head_dim]
        after: _Shape = ["batch_size", mixer.n_kv_heads, total, mixer.head_dim]
        yield f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", before, after
