"""The config that a GGUF's metadata and tensors amount to: the inverse of what `numbers` writes.

Blocks are put together first, whatever the family; the family says them as its config, which is then read as any
config is. What that does not give back is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.blocks import Attention, Branch, Branches, Dense, FeedForward, Mixer, Mixture, Norm, Rope, ShortConv
from ...graph.config import ModelConfig
from ...graph.dtypes import Float32
from ...graph.errors import Faults, InputError, UsageError
from ...graph.families.family import Family
from ...graph.roles import Address, Role
from ...graph.rotary import LARGEST_HEAD, default_rope, inverse_frequencies
from ...graph.source.config_file import parse_config
from ...graph.tensor import Shape
from ...quantize.gguf_file.tensor_names import gguf_names
from .numbers import SIGMOID, Numbers

# A factor from here on is a pair at rest: no table of a rope goes so far.
_AT_REST = 1e20
_NEEDED = {
    "block_count": "n_layers",
    "context_length": "context_length",
    "embedding_length": "hidden_size",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "rope.freq_base": "theta",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}


def read_config(
    family: Family, numbers: Numbers, shapes: Mapping[Address, Shape], *, factors: Float32 | None, ids: Mapping[str, Any],
    where: Path,
) -> ModelConfig:  # fmt: skip
    """The config of a file: its numbers, the shapes of its weights, and the factors of its ropes, if it has any.

    `ids` are fields for the config's special tokens and types. Raises: InputError with every contradiction.
    """
    faults, arch = Faults(), gguf_names(family).architecture
    for key, name in _NEEDED.items():
        if getattr(numbers, name) is None:
            faults.add(f"{arch}.{key} is missing")
    faults.raise_if_any(str(where))
    layers = _Blocks(numbers, shapes, factors, faults).layers()
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
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        dtype="",
        raw={},
    )
    other = InputError(f"{where}: holds a model of architecture '{arch}' with blocks that {family.name} has not")
    try:
        own = family.hub_fields(built)
    except (ValueError, UsageError):
        raise other from None
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
    if found != said:
        raise other
    return found


class _Blocks:
    """Puts the blocks of all layers together; what contradicts itself is a fault."""

    def __init__(
        self, numbers: Numbers, shapes: Mapping[Address, Shape], factors: Float32 | None, faults: Faults
    ) -> None:
        self._said, self._shapes, self._factors, self._faults = numbers, shapes, factors, faults
        self._norm = Norm(numbers.norm_eps or 0.0)

    def layers(self) -> tuple[Branches, ...]:
        n_layers, counts, n_heads = self._said.n_layers or 0, self._said.n_kv_heads or (), self._said.n_heads or 0
        if not 0 < n_layers <= len(self._shapes):  # each layer has several
            self._faults.add(f"block_count is {n_layers}, and there are {len(self._shapes)} tensors")
            return ()
        windows = self._said.has_window or (False,) * n_layers
        for name, values in (("attention.head_count_kv", counts), ("attention.sliding_window_pattern", windows)):
            if len(values) != n_layers:
                self._faults.add(f"{name} has {len(values)} entries but block_count is {n_layers}")
        if any(n and (n_heads % n or not n_heads) for n in counts):
            self._faults.add(f"attention.head_count {n_heads} is not a multiple of every attention.head_count_kv")
        if self._faults:
            return ()
        blocks = [self._layer(i, n, has) for i, (n, has) in enumerate(zip(counts, windows, strict=True))]
        return tuple(blocks) if not self._faults else ()

    def _has(self, role: Role, layer: int) -> bool:
        return (role, layer) in self._shapes

    def _layer(self, layer: int, n_kv_heads: int, has_window: bool) -> Branches:
        mixer: Mixer = self._attention(layer, n_kv_heads, has_window) if n_kv_heads else self._convolution(layer)
        blocks = (mixer, self._feed_forward(layer))
        bare = [Branch(block=block, norm=self._norm) for block in blocks]
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
        for key, value in (
            ("attention.value_length", self._said.value_length),
            ("rope.dimension_count", self._said.rotated),
        ):
            if value not in (None, head_dim):
                self._faults.add(f"{key} is {value}: expected {head_dim}, as heads of keys have")
        if has_window and not self._said.window:
            self._faults.add("attention.sliding_window is missing, and layers have windows")
        return Attention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rope=self._rope(head_dim, has_window),
            window=self._said.window if has_window else None,
            qk_norm=self._norm if self._has(Role.Q_NORM, layer) else None,
            is_gated=self._has(Role.ATTN_GATE, layer),
            is_biased=self._has(Role.ATTN_Q_BIAS, layer),
        )

    def _rope(self, head_dim: int, has_window: bool) -> Rope:
        """The default table; of layers without a window divided by the factors, if the file has any."""
        theta = (self._said.window_theta if has_window else None) or self._said.theta or 0
        if not theta >= 1:
            self._faults.add(f"a rope has the base {theta}: expected 1 or more")
            return Rope(theta=1.0, inverse_frequencies=())
        rope = default_rope(theta, head_dim)
        if has_window or self._factors is None:
            return rope
        if self._factors.shape != (head_dim // 2,):
            self._faults.add(f"the rope has {self._factors.size} factors: expected {head_dim // 2}")
            return rope
        turned = np.where(self._factors >= _AT_REST, np.float32(0), inverse_frequencies(rope) / self._factors)
        return replace(rope, inverse_frequencies=tuple(turned.astype(np.float32).tolist()))

    def _feed_forward(self, layer: int) -> FeedForward:
        said = self._said
        if not said.n_experts or layer < (said.n_dense or 0):
            if said.ffn_size is None:
                self._faults.add("feed_forward_length is missing")
            return Dense(size=said.ffn_size or 1)
        if said.gating not in (None, SIGMOID):
            self._faults.add(f"expert_gating_func is {said.gating}: expected {SIGMOID}, sigmoids")
        for key, value in (("expert_used_count", said.top_k), ("expert_feed_forward_length", said.expert_size)):
            if value is None:
                self._faults.add(f"{key} is missing, and there are experts")
        return Mixture(
            n_experts=said.n_experts,
            top_k=said.top_k or 1,
            size=said.expert_size or 1,
            has_bias=self._has(Role.EXPERT_BIAS, layer),
        )
