"""What the keys of an architecture say of a model's blocks, written and read by one table.

| key below the architecture | says                                                                              |
|----------------------------|-----------------------------------------------------------------------------------|
| attention.head_count_kv    | heads of keys a layer; none mark a short convolution                                |
| rope.freq_base, …_swa      | bases of the default tables                                                        |
| rope.scaling.*             | how a table differs from the default, where no tensor says it                       |
| rope.scaling.finetuned     | false: no layer has a rope                                                          |
| attention.key_length       | where the converter gives a size; else llama.cpp derives it                         |
| leading_dense_block_count  | layers before the first mixture of experts                                         |

Whether a layer has norms, gates or biases that it may lack is told by the tensors that are there.
Source: llama.cpp `conversion/` (`base.py` and a file a family), `gguf-py/gguf/metadata.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ...graph.blocks import Attention, Dense, Mixture, Pooling, Scoring, ShortConv, VectorHead
from ...graph.config import ModelConfig
from ...graph.errors import Faults
from ...graph.families.family import GgufNames
from ...quantize.gguf_file.header import KeyValue, ValueType
from ...quantize.gguf_file.tensor_names import gguf_names
from .expressible import any_attention
from .ropes import rope_numbers

# Ours, read by nobody else: what the stored expert down projections were multiplied by.
FOLDED_SCALE_KEY = "lfm_convert.folded_routed_scaling_factor"
FILE_TYPE_KEY = "general.file_type"
VOCAB_SIZE = ".vocab_size"
# `enum llama_expert_gating_func_type`.
GATINGS = {Scoring.SOFTMAX: 1, Scoring.SIGMOID: 2}
PROJECTED_KEY = "embedding_length_out"
# `enum llama_pooling_type`.
POOLINGS = {Pooling.MEAN: 1, Pooling.CLS: 2, Pooling.LAST: 3}
_MOST_LAYERS = 1 << 16
_KEY = "key"
_WORDS = {
    ValueType.UINT32: "an integer, zero or more",
    ValueType.INT32: "an integer, zero or more",
    ValueType.FLOAT32: "a finite number",
    ValueType.BOOL: "true or false",
    ValueType.STRING: "a text",
}
_INTEGERS = (ValueType.UINT32, ValueType.INT32)
_KV_HEADS = "attention.head_count_kv"
# Keys that only some architectures have.
_UNUSUAL = frozenset(
    (
        "expert_feed_forward_length", "leading_dense_block_count", "expert_gating_func", "vocab_size",
        "shortconv.l_cache", "attention.sliding_window", "attention.sliding_window_pattern", "rope.dimension_count",
        "attention.scale", "embedding_scale", "residual_scale", "logit_scale", "rope.scaling.finetuned",
    )
)  # fmt: skip


def _key(name: str, kind: ValueType, *, is_list: bool = False) -> Any:
    """A field that is a key: below the architecture if it begins with a dot."""
    return field(default=None, metadata={_KEY: (name, kind, is_list)})


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """One field a key, in the converter's order; None for a key that is not there."""

    n_layers: int | None = _key(".block_count", ValueType.UINT32)
    context_length: int | None = _key(".context_length", ValueType.UINT32)
    hidden_size: int | None = _key(".embedding_length", ValueType.UINT32)
    ffn_size: int | None = _key(".feed_forward_length", ValueType.UINT32)
    n_heads: int | None = _key(".attention.head_count", ValueType.UINT32)
    n_kv_heads: tuple[int, ...] | None = _key(".attention.head_count_kv", ValueType.INT32, is_list=True)
    rope_type: str | None = _key(".rope.scaling.type", ValueType.STRING)
    rope_factor: float | None = _key(".rope.scaling.factor", ValueType.FLOAT32)
    trained_length: int | None = _key(".rope.scaling.original_context_length", ValueType.UINT32)
    beta_fast: float | None = _key(".rope.scaling.yarn_beta_fast", ValueType.FLOAT32)
    beta_slow: float | None = _key(".rope.scaling.yarn_beta_slow", ValueType.FLOAT32)
    attention_factor: float | None = _key(".rope.scaling.attn_factor", ValueType.FLOAT32)
    theta: float | None = _key(".rope.freq_base", ValueType.FLOAT32)
    window_theta: float | None = _key(".rope.freq_base_swa", ValueType.FLOAT32)
    norm_eps: float | None = _key(".attention.layer_norm_rms_epsilon", ValueType.FLOAT32)
    n_experts: int | None = _key(".expert_count", ValueType.UINT32)
    top_k: int | None = _key(".expert_used_count", ValueType.UINT32)
    key_length: int | None = _key(".attention.key_length", ValueType.UINT32)
    value_length: int | None = _key(".attention.value_length", ValueType.UINT32)
    file_type: int | None = _key(FILE_TYPE_KEY, ValueType.UINT32)
    expert_size: int | None = _key(".expert_feed_forward_length", ValueType.UINT32)
    n_dense: int | None = _key(".leading_dense_block_count", ValueType.UINT32)
    gating: int | None = _key(".expert_gating_func", ValueType.UINT32)
    folded: float | None = _key(FOLDED_SCALE_KEY, ValueType.FLOAT32)
    vocab_size: int | None = _key(VOCAB_SIZE, ValueType.UINT32)
    conv_width: int | None = _key(".shortconv.l_cache", ValueType.UINT32)
    window: int | None = _key(".attention.sliding_window", ValueType.UINT32)
    has_window: tuple[bool, ...] | None = _key(".attention.sliding_window_pattern", ValueType.BOOL, is_list=True)
    rotated: int | None = _key(".rope.dimension_count", ValueType.UINT32)
    score_scale: float | None = _key(".attention.scale", ValueType.FLOAT32)
    embedding_scale: float | None = _key(".embedding_scale", ValueType.FLOAT32)
    branch_scale: float | None = _key(".residual_scale", ValueType.FLOAT32)
    logit_divisor: float | None = _key(".logit_scale", ValueType.FLOAT32)
    shared_size: int | None = _key(".expert_shared_feed_forward_length", ValueType.UINT32)
    mamba_width: int | None = _key(".ssm.conv_kernel", ValueType.UINT32)
    mamba_state: int | None = _key(".ssm.state_size", ValueType.UINT32)
    mamba_groups: int | None = _key(".ssm.group_count", ValueType.UINT32)
    mamba_size: int | None = _key(".ssm.inner_size", ValueType.UINT32)
    mamba_heads: int | None = _key(".ssm.time_step_rank", ValueType.UINT32)
    turns: bool | None = _key(".rope.scaling.finetuned", ValueType.BOOL)
    is_causal: bool | None = _key(".attention.causal", ValueType.BOOL)
    pooling: int | None = _key(".pooling_type", ValueType.UINT32)
    projected: int | None = _key(f".{PROJECTED_KEY}", ValueType.UINT32)

    def pairs(self, names: GgufNames) -> list[KeyValue]:
        """Those that are there and that the converter of the architecture writes, in its order."""
        found: dict[str, KeyValue] = {}
        for each in fields(self):
            value, (name, kind, is_list) = getattr(self, each.name), each.metadata[_KEY]
            if value is None:
                continue
            key, bare = (names.architecture + name, name[1:]) if name.startswith(".") else (name, name)
            found[bare] = KeyValue(key, ValueType.ARRAY, list(value), kind) if is_list else KeyValue(key, kind, value)
        if self.n_kv_heads and not names.lists_heads and len(set(self.n_kv_heads)) == 1:
            key = f"{names.architecture}.{_KV_HEADS}"
            found[_KV_HEADS] = KeyValue(key, ValueType.UINT32, self.n_kv_heads[0])
        if not names.has_usual_keys:
            return [found[key] for key in (*names.early_keys, *names.keys) if key in found]
        return [pair for key, pair in found.items() if key in names.keys or key not in _UNUSUAL]


def read_numbers(said: Mapping[str, Any], architecture: str, faults: Faults) -> Numbers:
    """What a file's metadata says, with a fault for every value that is not of its key's kind.

    A single value in place of a list holds for every layer of the file.
    """
    found: dict[str, Any] = {}
    n_layers = said.get(f"{architecture}.block_count")
    for each in fields(Numbers):
        name, kind, is_list = each.metadata[_KEY]
        key = architecture + name if name.startswith(".") else name
        value = said.get(key)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if (isinstance(value, list) and not is_list) or not all(_is_of(kind, item) for item in values):
            faults.add(f"{key} is {value!r:.60}: expected {_WORDS[kind]}{' a layer' if is_list else ''}")
        elif not is_list:
            found[each.name] = _plain(kind, value)
        elif isinstance(value, list):
            found[each.name] = tuple(value)
        else:
            found[each.name] = (value,) * (n_layers if isinstance(n_layers, int) and n_layers <= _MOST_LAYERS else 0)
    return Numbers(**found)


def unread_keys(said: Mapping[str, Any], architecture: str) -> list[str]:
    """Keys of the architecture that say something of its blocks, and that no field is."""
    known = {architecture + each.metadata[_KEY][0] for each in fields(Numbers)}
    return [key for key in said if key.startswith(architecture + ".") and key not in known]


def _is_of(kind: ValueType, value: Any) -> bool:
    if kind is ValueType.BOOL:
        return isinstance(value, bool)
    if kind is ValueType.STRING:
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind in _INTEGERS:
        return isinstance(value, int) and 0 <= value < 2**31
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _plain(kind: ValueType, value: Any) -> Any:
    """A float32 as the shortest number that is it: 1e-05, where widening would give 9.999999747378752e-06."""
    return float(str(np.float32(value))) if kind is ValueType.FLOAT32 else value


def numbers_of(config: ModelConfig, *, file_type: int) -> Numbers:
    """What a file says of a model, and of itself."""
    names = gguf_names(config.family)
    conv, dense, mixture = config.shared(ShortConv), config.shared(Dense), config.mixture
    attention, full = any_attention(config), any_attention(config, is_sliding=False)
    sliding = any_attention(config, is_sliding=True)
    has_windows = sliding.window is not None
    is_sized = config.raw.get("head_dim") is not None if names.has_head_size is None else names.has_head_size
    rope = next(iter(config.ropes), None)
    sees = tuple(map(_sees_window, config.mixers))
    own = Numbers(
        n_layers=config.n_layers,
        context_length=config.context_length,
        hidden_size=config.hidden_size,
        ffn_size=_ffn_size(config, dense, mixture),
        n_heads=attention.n_heads,
        n_kv_heads=tuple(mixer.n_kv_heads if isinstance(mixer, Attention) else 0 for mixer in config.mixers),
        theta=None if rope is None else (full.rope or rope).theta,
        window_theta=sliding.rope.theta if has_windows and sliding.rope else None,
        norm_eps=config.norm_eps,
        key_length=attention.head_dim if is_sized else None,
        value_length=attention.head_dim if is_sized else None,
        file_type=file_type,
        **rope_numbers(config),
        **({} if mixture is None else _of_mixture(mixture, n_dense=len(config.of_kind(Dense)))),
        vocab_size=config.vocab_size,
        conv_width=None if conv is None else conv.width,
        window=sliding.window,
        has_window=sees if has_windows and sees != usual_windows(names, config.n_layers) else None,
        # Of proportional ropes heads turn whole: pairs at rest are a matter of the factors.
        rotated=attention.head_dim if rope is None else rope.n_dims,
        **(_scales(config, attention) if names.has_scales else {}),
        turns=None if rope else False,
        is_causal=None if config.is_causal else False,
        **({} if config.vectors is None else _of_vectors(config.vectors)),
    )
    return replace(own, **_said_beside(names.says(config)))


def usual_windows(names: GgufNames, n_layers: int) -> tuple[bool, ...] | None:
    """Which layers see a window where a file does not say it; None if it has to."""
    period = names.window_period
    return None if period is None else tuple((layer + 1) % period != 0 for layer in range(n_layers))


def _ffn_size(config: ModelConfig, dense: Dense | None, mixture: Mixture | None) -> int | None:
    """The converter writes the size that a config gives though no layer is dense."""
    if dense is not None:
        return dense.size
    given: int | None = config.raw.get("intermediate_size")
    return given or (mixture.size if mixture else None)


def _scales(config: ModelConfig, attention: Attention) -> dict[str, Any]:
    return {
        "score_scale": attention.scale,
        "embedding_scale": config.embedding_scale,
        "branch_scale": config.layers[0][0].scale,
        "logit_divisor": 1 / config.logit_scale,
    }


def _said_beside(values: Mapping[str, int]) -> dict[str, Any]:
    """What follows from no block, by the names of the fields."""
    keys = {each.metadata[_KEY][0]: each.name for each in fields(Numbers)}
    return {keys[f".{key}"]: value for key, value in values.items()}


def _of_vectors(head: VectorHead) -> dict[str, Any]:
    """What is said of a model's vectors. llama.cpp gives one for every token where no pooling is named."""
    return {"pooling": POOLINGS.get(head.pooling), "projected": head.projected}


def _of_mixture(mixture: Mixture, *, n_dense: int) -> dict[str, Any]:
    return {
        "n_experts": mixture.n_experts,
        "top_k": mixture.top_k,
        "expert_size": mixture.size,
        "n_dense": n_dense,
        "gating": GATINGS[mixture.scoring],
        "folded": None if mixture.scaling == 1.0 else mixture.scaling,
    }


def _sees_window(mixer: object) -> bool:
    return isinstance(mixer, Attention) and mixer.window is not None
