"""LFM2 and LFM2.5, dense: gated short convolutions and grouped-query attention, each followed by a gated feed-forward.

Source: transformers `configuration_lfm2.py`, `modeling_lfm2.py`; the configs of LFM2-350M … LFM2.5-2.6B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..blocks import Attention, Branch, Branches, Dense, FeedForward, Mixer, Rope, ShortConv
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from ..rotary import default_rope
from .family import Family, GgufNames, MlxNames, Places, ServerNames
from .places import Kernel, Place
from .reading import check_layer_types, named_classes, read_head_dim, read_n_layers, read_norm

ALIASES = {
    "norm_eps": ("block_norm_eps",),
    "hidden_size": ("block_dim", "conv_dim", "conv_dim_out"),
    "num_attention_heads": ("num_heads",),
    "num_experts": ("num_local_experts",),
    "tie_word_embeddings": ("tie_embedding",),
}
TOP_PLACES: Places = {
    Role.EMBED: [Place("model.embed_tokens.weight")],
    Role.FINAL_NORM: [Place("model.embedding_norm.weight")],
    Role.LM_HEAD: [Place("lm_head.weight")],
}
LAYER_PLACES: Places = {
    Role.OPERATOR_NORM: [Place("operator_norm.weight")],
    Role.CONV_IN: [Place("conv.in_proj.weight")],
    Role.CONV_IN_BIAS: [Place("conv.in_proj.bias")],
    Role.CONV_KERNEL: [Kernel("conv.conv.weight")],
    Role.CONV_KERNEL_BIAS: [Place("conv.conv.bias")],
    Role.CONV_OUT: [Place("conv.out_proj.weight")],
    Role.CONV_OUT_BIAS: [Place("conv.out_proj.bias")],
    Role.ATTN_Q: [Place("self_attn.q_proj.weight")],
    Role.ATTN_K: [Place("self_attn.k_proj.weight")],
    Role.ATTN_V: [Place("self_attn.v_proj.weight")],
    Role.ATTN_OUT: [Place("self_attn.out_proj.weight")],
    Role.Q_NORM: [Place("self_attn.q_layernorm.weight")],
    Role.K_NORM: [Place("self_attn.k_layernorm.weight")],
    Role.FFN_NORM: [Place("ffn_norm.weight")],
    Role.FFN_GATE: [Place("feed_forward.w1.weight")],
    Role.FFN_UP: [Place("feed_forward.w3.weight")],
    Role.FFN_DOWN: [Place("feed_forward.w2.weight")],
}
# What GGUF calls the norm before the head: a name that llama.cpp keeps for old files.
GGUF_TENSORS = {Role.FINAL_NORM: "token_embd_norm.weight"}
GGUF_DEMANDS = frozenset({Role.Q_NORM, Role.K_NORM})
GGUF_KEYS = ("vocab_size", "shortconv.l_cache")
_CONV, _ATTENTION = "conv", "full_attention"
# The classes of models that give vectors: LFM2-ColBERT is causal, LFM2.5's see both ways.
_CAUSAL_ENCODER, _BOTH_WAYS = "Lfm2Model", "Lfm2BidirectionalModel"


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    mixers, dense = read_mixers(read), Dense(size=_ffn_size(read))
    return tuple(layer(mixer, dense, read) for mixer in mixers)


def layer(mixer: Mixer, feed_forward: FeedForward, read: Fields) -> Branches:
    """Norm and mixer, norm and feed-forward."""
    norm = read_norm(read)
    return Branch(norm=norm, block=mixer), Branch(norm=norm, block=feed_forward)


def read_mixers(read: Fields) -> tuple[Mixer, ...]:
    """The mixer of each layer, by `layer_types` or the older `full_attn_idxs`."""
    is_causal = _BOTH_WAYS not in named_classes(read.raw) and read.flag("is_causal", True)
    width = read.number("conv_L_cache", int, least=2)
    if not (is_causal or width % 2):
        read.faults.add(f"conv_L_cache is {width}: expected an odd number, since {_BOTH_WAYS} centres its convolutions")
    conv = ShortConv(width=width, is_biased=read.flag("conv_bias", False), is_causal=is_causal)
    attention = replace(_attention(read), is_causal=is_causal)
    kinds: dict[str, Mixer] = {_CONV: conv, _ATTENTION: attention}
    return tuple(kinds[name] for name in _layer_types(read))


def _attention(read: Fields) -> Attention:
    hidden, n_heads = read.number("hidden_size", int), read.number("num_attention_heads", int)
    n_kv_heads = read.number("num_key_value_heads", int)
    head_dim = read_head_dim(read, n_heads=n_heads, n_kv_heads=n_kv_heads, default=_head_dim(read, hidden, n_heads))
    theta = _rope_theta(read)
    rope = Rope(theta=theta, inverse_frequencies=()) if read.faults else default_rope(theta, head_dim)
    return Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, rope=rope, qk_norm=read_norm(read))


def _head_dim(read: Fields, hidden: int, n_heads: int) -> int:
    if read.value("head_dim") is None and hidden % n_heads:
        read.faults.add(f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}")
    return max(1, hidden // n_heads)


def _layer_types(read: Fields) -> Sequence[str]:
    n_layers = read_n_layers(read)
    names, indices = read.items("layer_types", str), read.items("full_attn_idxs", int)
    if names is None:
        if indices is None:
            read.faults.add("neither layer_types nor full_attn_idxs says which layers are attention")
        outside = [i for i in indices or () if not 0 <= i < n_layers]
        if outside:
            read.faults.add(f"full_attn_idxs holds {outside[0]}: expected layers 0 to {n_layers - 1}")
        attention = frozenset(indices or ())
        return [_ATTENTION if i in attention else _CONV for i in range(n_layers)]
    names = check_layer_types(read, names, n_layers=n_layers, known=(_CONV, _ATTENTION))
    from_types = [i for i, name in enumerate(names) if name == _ATTENTION]
    if indices is not None and sorted(indices) != from_types:
        read.faults.add(f"full_attn_idxs {sorted(indices)} disagrees with layer_types, whose attention is {from_types}")
    return names


def _ffn_size(read: Fields) -> int:
    """Rows of w1.

    Checkpoints give the size before an adjustment that the model applies itself: two thirds, a multiplier, rounded up
    to a multiple (6656 means 4608 in LFM2-350M).
    """
    given, block = read.value("intermediate_size"), read.value("block_ff_dim")
    if block is not None and given is not None and block != given:
        read.notes.append(f"block_ff_dim {block} is used, intermediate_size {given} is not: it is the older spelling")
    size: int = read.number("intermediate_size" if block is None else "block_ff_dim", int)
    if not read.flag("block_auto_adjust_ff_dim", True):
        return size
    adjusted = int(2 * size / 3)
    if "block_ffn_dim_multiplier" in read.raw and read.raw["block_ffn_dim_multiplier"] is None:
        return adjusted  # an explicit null also turns the rounding off
    multiple: int = read.number("block_multiple_of", int, 256)
    adjusted = int(read.number("block_ffn_dim_multiplier", float, 1.0, least=1e-6) * adjusted)
    return multiple * -(-adjusted // multiple)


def _rope_theta(read: Fields) -> float:
    nested, scaling = read.table("rope_parameters"), read.table("rope_scaling")
    kinds = {str(table.get("rope_type", table.get("type", "default"))) for table in (nested, scaling)}
    for kind in sorted(kinds - {"default"}):
        read.faults.add(
            f"rope type '{kind}' is not part of the LFM2 family: expected 'default'; another rope needs its table in "
            "graph/rotary.py"
        )
    fields = {"rope_theta": read.value("rope_theta"), "rope_parameters.rope_theta": nested.get("rope_theta")}
    thetas = [read.checked(key, theta, float) for key, theta in fields.items() if theta is not None]
    if not thetas:
        read.faults.add("rope_theta is given neither at the top level nor in rope_parameters")
        return 1.0
    if thetas[0] != thetas[-1]:
        read.faults.add(" but ".join(f"{key} is {theta}" for key, theta in fields.items()) + ": these must agree")
    return float(thetas[0])


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """What the configs of all LFM2 models have, each under the name that transformers gives it."""
    conv, attention = config.first(ShortConv), config.first(Attention)
    theta = attention.rope.theta if attention and attention.rope else None
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention and attention.n_heads,
        "num_key_value_heads": attention and attention.n_kv_heads,
        "layer_types": [_CONV if isinstance(mixer, ShortConv) else _ATTENTION for mixer in config.mixers],
        "max_position_embeddings": config.context_length,
        "norm_eps": config.norm_eps,
        "conv_bias": conv and conv.is_biased,
        "conv_L_cache": conv and conv.width,
        "rope_theta": theta,
        "rope_parameters": theta and {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": config.tied,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    """The feed-forward's size as it is: read again, it would be adjusted again."""
    dense = config.shared(Dense)
    if dense is None:
        raise ValueError("a model of this family has dense feed-forwards")
    return {
        **common_fields(config),
        "intermediate_size": dense.size,
        "block_dim": config.hidden_size,
        "block_ff_dim": dense.size,
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": config.raw.get("block_multiple_of") or 256,
        "block_ffn_dim_multiplier": config.raw.get("block_ffn_dim_multiplier") or 1.0,
    }


FAMILY = Family(
    name="LFM2",
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    aliases=ALIASES,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=TOP_PLACES,
    layer_places=LAYER_PLACES,
    encoders=frozenset({_CAUSAL_ENCODER, _BOTH_WAYS}),
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="lfm2",
        tensors=GGUF_TENSORS,
        demands=GGUF_DEMANDS,
        has_convolutions=True,
        keys=GGUF_KEYS,
        gives_vectors=True,
    ),
    mlx=MlxNames(),
    servers=ServerNames(fields=lambda config: {"conv_dim": config.hidden_size}),
)
