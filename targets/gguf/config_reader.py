"""The config that a GGUF's metadata and tensors amount to: the inverse of what `numbers` writes.

Blocks are put together first, whatever the family; the family says them as its config, which is then read as any
config is. What that does not give back is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...graph.blocks import (
    Attention,
    Branch,
    Branches,
    Dense,
    FeedForward,
    Mixer,
    Mixture,
    Norm,
    Rope,
    Scoring,
    ShortConv,
)  # fmt: skip
from ...graph.config import ModelConfig
from ...graph.errors import Faults, InputError, UsageError
from ...graph.families.family import Family, GgufNames
from ...graph.roles import Address, Role
from ...graph.rotary import LARGEST_HEAD
from ...graph.source.config_file import parse_config
from ...graph.tensor import Shape
from ...quantize.gguf_file.tensor_names import gguf_names
from .numbers import GATINGS, Numbers, usual_windows
from .rope_reader import Tables, read_rope

_NEEDED = {
    "block_count": "n_layers",
    "context_length": "context_length",
    "embedding_length": "hidden_size",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_TRAINED = "original_max_position_embeddings"


def read_config(
    families: Sequence[Family], numbers: Numbers, shapes: Mapping[Address, Shape], *, tables: Tables, ids: Mapping[str, Any],
    where: Path,
) -> ModelConfig:  # fmt: skip
    """The config of a file: its numbers, the shapes of its weights, and the tensors of its rope, by name.

    Of the families that llama.cpp has one architecture for it is the first that can say the model. `ids` are fields for
    the config's special tokens and types. Raises: InputError with every contradiction.
    """
    faults, arch = Faults(), gguf_names(families[0]).architecture
    for key, name in _NEEDED.items() if numbers.turns is False else {**_NEEDED, "rope.freq_base": "theta"}.items():
        if getattr(numbers, name) is None:
            faults.add(f"{arch}.{key} is missing")
    faults.raise_if_any(str(where))
    for family in families:
        built = _built(family, numbers, shapes, tables, where)
        if (found := _as_family(built, ids, where)) is not None:
            return found
    names = " and ".join(family.name for family in families)
    raise InputError(f"{where}: holds a model of architecture '{arch}' with blocks that {names} has not")


def _built(
    family: Family, numbers: Numbers, shapes: Mapping[Address, Shape], tables: Tables, where: Path
) -> ModelConfig:
    """The config as far as the file says it."""
    faults, names = Faults(), gguf_names(family)
    blocks = _Blocks(names, numbers, shapes, tables, faults)
    layers = blocks.layers()
    faults.raise_if_any(str(where))
    embed = shapes.get((Role.EMBED, None), ())
    built = ModelConfig(
        family=family,
        model_type=family.model_type,
        hidden_size=numbers.hidden_size or 1,
        vocab_size=embed[0] if len(embed) == 2 else numbers.vocab_size or 1,
        layers=layers,
        final_norm=Norm(numbers.norm_eps or 0.0),
        context_length=numbers.context_length or 1,
        tied=(Role.LM_HEAD, None) not in shapes,
        logit_scale=1 / (numbers.logit_divisor or 1.0) if names.has_scales else 1.0,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        dtype="",
        # some families look for the trained length beside the table
        raw={**{key: value for key, value in blocks.ropes.items() if key == _TRAINED}, "rope_parameters": blocks.ropes},
    )
    scale = (numbers.embedding_scale or 1.0) if names.has_scales else names.embedding_scale(built)
    return _with_score_scales(replace(built, embedding_scale=scale), names)


def _with_score_scales(config: ModelConfig, names: GgufNames) -> ModelConfig:
    """With what the architecture multiplies scores with, if that is not usual."""
    scaled = names.score_scale
    if scaled is None:
        return config

    def settled(branch: Branch) -> Branch:
        block = branch.block
        if not isinstance(block, Attention):
            return branch
        return replace(branch, block=replace(block, score_scale=scaled(config, block)))

    return replace(config, layers=tuple(tuple(map(settled, branches)) for branches in config.layers))


def _as_family(built: ModelConfig, ids: Mapping[str, Any], where: Path) -> ModelConfig | None:
    """The config as the family reads it; None if it has other blocks."""
    family = built.family
    try:
        own = family.hub_fields(built)
    except (ValueError, UsageError):
        return None
    raw = {"architectures": [family.architecture], "model_type": family.model_type, **own, **ids}
    found = parse_config(raw, where=str(where))
    said = replace(
        built,
        bos_token_id=found.bos_token_id,
        eos_token_ids=found.eos_token_ids,
        pad_token_id=found.pad_token_id,
        dtype=found.dtype,
        notes=found.notes,
    )
    return found if found == said else None


class _Blocks:
    """Puts the blocks of all layers together; what contradicts itself is a fault."""

    def __init__(
        self, names: GgufNames, numbers: Numbers, shapes: Mapping[Address, Shape], tables: Tables, faults: Faults
    ) -> None:
        self._names, self._said, self._shapes, self._tables, self._faults = names, numbers, shapes, tables, faults
        self._norm = Norm(numbers.norm_eps or 0.0)
        self._ropes: dict[str, Mapping[str, Any]] = {}

    @property
    def ropes(self) -> Mapping[str, Any]:
        """As configs say them: by kind of layer, if some have windows."""
        return self._ropes if _SLIDING in self._ropes else self._ropes.get(_FULL, {})

    def layers(self) -> tuple[Branches, ...]:
        n_layers, counts, n_heads = self._said.n_layers or 0, self._said.n_kv_heads or (), self._said.n_heads or 0
        if not 0 < n_layers <= len(self._shapes):  # each layer has several
            self._faults.add(f"block_count is {n_layers}, and there are {len(self._shapes)} tensors")
            return ()
        windows = self._windows(n_layers)
        for name, values in (("attention.head_count_kv", counts), ("attention.sliding_window_pattern", windows)):
            if len(values) != n_layers:
                self._faults.add(f"{name} has {len(values)} entries but block_count is {n_layers}")
        if any(n and (n_heads % n or not n_heads) for n in counts):
            self._faults.add(f"attention.head_count {n_heads} is not a multiple of every attention.head_count_kv")
        if self._faults:
            return ()
        blocks = [self._layer(i, n, has) for i, (n, has) in enumerate(zip(counts, windows, strict=True))]
        return tuple(blocks) if not self._faults else ()

    def _windows(self, n_layers: int) -> tuple[bool, ...]:
        if not self._names.has_windows or not (self._said.window or self._said.has_window):
            return (False,) * n_layers
        return self._said.has_window or usual_windows(self._names, n_layers) or (False,) * n_layers

    def _has(self, role: Role, layer: int) -> bool:
        return (role, layer) in self._shapes

    def _layer(self, layer: int, n_kv_heads: int, has_window: bool) -> Branches:
        mixer: Mixer = self._attention(layer, n_kv_heads, has_window) if n_kv_heads else self._convolution(layer)
        blocks = (mixer, self._feed_forward(layer))
        scale = (self._said.branch_scale or 1.0) if self._names.has_scales else 1.0
        bare = [Branch(block=block, norm=self._norm, scale=scale) for block in blocks]
        return tuple(
            replace(each, post_norm=self._norm if self._has(each.post_norm_role, layer) else None) for each in bare
        )

    def _convolution(self, layer: int) -> ShortConv:
        width = self._said.conv_width
        if width is None:
            self._faults.add("shortconv.l_cache is missing, and layers are short convolutions")
        return ShortConv(width=width or 2, is_biased=self._has(Role.CONV_IN_BIAS, layer))

    def _attention(self, layer: int, n_kv_heads: int, has_window: bool) -> Attention:
        n_heads, hidden = self._said.n_heads or 1, self._said.hidden_size or 1
        head_dim = self._said.key_length or hidden // n_heads
        if head_dim % 2 or not 0 < head_dim <= LARGEST_HEAD:
            self._faults.add(f"heads have {head_dim} elements: expected an even number of at most {LARGEST_HEAD}")
            head_dim = 2
        if self._said.value_length not in (None, head_dim):
            self._faults.add(
                f"attention.value_length is {self._said.value_length}: expected {head_dim}, as heads of keys have"
            )
        if has_window and not self._said.window:
            self._faults.add("attention.sliding_window is missing, and layers have windows")
        return Attention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rope=self._rope(head_dim, has_window, layer),
            window=self._said.window if has_window else None,
            qk_norm=self._norm if self._has(Role.Q_NORM, layer) else None,
            is_gated=self._has(Role.ATTN_GATE, layer),
            is_biased=self._has(Role.ATTN_Q_BIAS, layer),
            score_scale=self._said.score_scale if self._names.has_scales else None,
        )

    def _rope(self, head_dim: int, has_window: bool, layer: int) -> Rope | None:
        if self._said.turns is False or not self._names.turns(layer):
            return None
        rope, settings = read_rope(
            self._said,
            self._tables,
            head_dim=head_dim,
            has_partial=self._names.has_partial_ropes,
            is_windowed=has_window,
            faults=self._faults,
        )
        self._ropes[_SLIDING if has_window else _FULL] = settings
        return rope

    def _feed_forward(self, layer: int) -> FeedForward:
        said, scoring = self._said, self._names.scoring
        if not said.n_experts or layer < (said.n_dense or 0):
            if said.ffn_size is None:
                self._faults.add("feed_forward_length is missing")
            return Dense(size=said.ffn_size or 1, activation=self._names.activation)
        gating = None if scoring is None else GATINGS[scoring]
        if said.gating not in (None, gating) and scoring is not None:
            self._faults.add(f"expert_gating_func is {said.gating}: expected {gating}, {scoring.value}s")
        size = said.expert_size or (None if self._is_own_size else said.ffn_size)
        for key, value in (("expert_used_count", said.top_k), ("expert_feed_forward_length", size)):
            if value is None:
                self._faults.add(f"{key} is missing, and there are experts")
        return Mixture(
            n_experts=said.n_experts,
            top_k=said.top_k or 1,
            size=size or 1,
            scoring=scoring or Scoring.SIGMOID,
            has_bias=self._has(Role.EXPERT_BIAS, layer),
            sum_eps=0.0 if scoring is Scoring.SOFTMAX else Mixture.sum_eps,
        )

    @property
    def _is_own_size(self) -> bool:
        """Whether files of the architecture say how large an expert is, beside how large a dense feed-forward."""
        return "expert_feed_forward_length" in self._names.keys
