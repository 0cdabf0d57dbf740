"""Between the graph's cache inputs and outputs and transformers' `DynamicCache`.

A `DynamicCache` has one entry a layer: keys and values [batch, kv_heads, length, head_dim] of attention, of a sliding
window the last ones only, and the last `conv_L_cache` inputs [batch, hidden, width] of a convolution. These are the
graph's own states, so a cache that transformers' model filled is continued here, and the other way round.
Source: transformers 5.23, `cache_utils.py` and the models' `modeling_*.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from ....graph.errors import InputError, UsageError
from ..signature import WINDOW_LENGTH

_PAST = re.compile(r"past_(?:conv\.(\d+)|key_values\.(\d+)\.(key|value))")
FIXED_INPUTS = ("input_ids", "attention_mask", "num_logits_to_keep")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


@dataclass(frozen=True)
class State:
    """One cache input of the graph: which layer's, and its shape without the batch; a length that grows is 0.

    `kind` is the class of the layer's entry in a `DynamicCache`.
    """

    name: str
    layer: int
    part: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: type

    def read(self, cache: Cache | None, batch_size: int) -> torch.Tensor:
        """What the graph is fed: the layer's state, or the empty one."""
        found = None if cache is None else self._find(cache)
        if found is None:
            return torch.zeros((batch_size, *self.shape), dtype=self.dtype)
        return found.to("cpu", self.dtype).contiguous()

    def _find(self, cache: Cache) -> torch.Tensor | None:
        if self.part == "conv":
            return cache.get_conv_state(self.layer)
        layer: Any = cache.layers[self.layer]
        return layer.keys if self.part == "key" else layer.values


def states(inputs: Sequence[Any], where: str) -> tuple[State, ...]:
    """The cache inputs among a session's inputs, in order.

    Raises: InputError for an input that is neither a cache nor one of `FIXED_INPUTS`.
    """
    found = []
    for entry in inputs:
        if entry.name in FIXED_INPUTS:
            continue
        match = _PAST.fullmatch(entry.name)
        if match is None or entry.type not in _DTYPES:
            raise InputError(
                f"{where}: input '{entry.name}' is not one that lfm-convert writes: expected past_conv.N, "
                f"past_key_values.N.key or .value, {', '.join(FIXED_INPUTS)}"
            )
        layer, part = int(match[1] or match[2]), match[3] or "conv"
        shape = tuple(0 if isinstance(size, str) else size for size in entry.shape[1:])
        kind: type = LinearAttentionLayer if part == "conv" else DynamicLayer
        if WINDOW_LENGTH in entry.shape:
            kind = DynamicSlidingWindowLayer
        found.append(State(entry.name, layer, part, shape, _DTYPES[entry.type], kind))
    if not found:
        raise InputError(f"{where}: has no cache inputs: not a text generation graph of lfm-convert")
    return tuple(found)


def check(cache: Cache, states: Sequence[State]) -> None:
    """Refuses a cache that does not hold the graph's states.

    Raises: UsageError for a static or quantized cache, that of another config, or one that must be rolled back.
    """
    expected = "expected a DynamicCache of the model's config"
    for state in states:
        if state.layer >= len(cache.layers):
            raise UsageError(f"past_key_values has no layer {state.layer}: {expected}")
        layer = cache.layers[state.layer]
        if type(layer) is not state.kind:
            raise UsageError(f"layer {state.layer} of past_key_values is a {type(layer).__name__}: {expected}")
        if getattr(layer, "record_past", False):
            raise UsageError("past_key_values records its past: a graph's states cannot be rolled back")


def keep_whole(config: Any, states: Sequence[State]) -> None:
    """Makes a config say of the layers whose caches are whole that they attend to all, so that its caches are too."""
    kinds = {state.layer: state.kind for state in states}
    names = getattr(config, "layer_types", None) or []
    whole = {i for i, name in enumerate(names) if name == _SLIDING and kinds.get(i) is DynamicLayer}
    if whole:
        config.layer_types = [_FULL if i in whole else name for i, name in enumerate(names)]


def empty(config: Any) -> DynamicCache:
    """A new cache with an entry a layer."""
    return DynamicCache(config=config)


def store(cache: Cache, states: Sequence[State], present: Sequence[torch.Tensor], *, n_new: int) -> None:
    """Puts the graph's states after `n_new` tokens into the cache; they replace the old ones."""
    new: dict[int, dict[str, torch.Tensor]] = {}
    for state, tensor in zip(states, present, strict=True):
        new.setdefault(state.layer, {})[state.part] = tensor
    for index, parts in new.items():
        layer: Any = cache.layers[index]
        if "conv" in parts:
            cache.update_conv_state(parts["conv"], index)
            continue
        if not layer.is_initialized:
            layer.lazy_initialization(parts["key"], parts["value"])
        # The graph returns all that a layer keeps, so that nothing is joined here.
        layer.keys, layer.values = parts["key"], parts["value"]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length += n_new
