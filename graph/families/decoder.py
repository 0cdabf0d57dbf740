"""What most families have in common: norm and attention, norm and gated feed-forward, under the names Llama gave them.

A family of this kind says what it has besides; its file is its difference from this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks import Activation, Attention, Branch, Branches, Dense, FeedForward, Norm
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from .family import MlxCan, Places
from .places import Place
from .reading import check_layer_types, read_head_dim, read_n_layers, read_norm
from .ropes import read_rope, rope_settings

FULL, SLIDING = "full_attention", "sliding_attention"
BIASES = frozenset({Role.ATTN_Q_BIAS, Role.ATTN_K_BIAS, Role.ATTN_V_BIAS, Role.ATTN_OUT_BIAS})
# What llama.cpp's converter for Llama, and those that follow it, say beside the usual.
GGUF_KEYS = ("vocab_size", "rope.dimension_count")
ALIASES = {"norm_eps": ("rms_norm_eps",), "hidden_act": ("hidden_activation",)}
DEFAULTS: dict[str, Any] = {"tie_word_embeddings": False, "norm_eps": 1e-6, "hidden_act": "silu"}
TOP_PLACES: Places = {
    Role.EMBED: [Place("model.embed_tokens.weight")],
    Role.FINAL_NORM: [Place("model.norm.weight")],
    Role.LM_HEAD: [Place("lm_head.weight")],
}
LAYER_PLACES: Places = {
    Role.OPERATOR_NORM: [Place("input_layernorm.weight")],
    Role.FFN_NORM: [Place("post_attention_layernorm.weight")],
    **{
        role: [Place(f"self_attn.{name}")]
        for role, name in (
            (Role.ATTN_Q, "q_proj.weight"),
            (Role.ATTN_K, "k_proj.weight"),
            (Role.ATTN_V, "v_proj.weight"),
            (Role.ATTN_OUT, "o_proj.weight"),
            (Role.ATTN_Q_BIAS, "q_proj.bias"),
            (Role.ATTN_K_BIAS, "k_proj.bias"),
            (Role.ATTN_V_BIAS, "v_proj.bias"),
            (Role.ATTN_OUT_BIAS, "o_proj.bias"),
            (Role.Q_NORM, "q_norm.weight"),
            (Role.K_NORM, "k_norm.weight"),
        )
    },
    Role.FFN_GATE: [Place("mlp.gate_proj.weight")],
    Role.FFN_UP: [Place("mlp.up_proj.weight")],
    Role.FFN_DOWN: [Place("mlp.down_proj.weight")],
}


def layer(
    attention: Attention, feed_forward: FeedForward, norm: Norm, *, post_norm: Norm | None = None, scale: float = 1.0
) -> Branches:
    """Attention and feed-forward, each behind its norm."""
    branches = (Branch(norm=norm, block=block, post_norm=post_norm, scale=scale) for block in (attention, feed_forward))
    return tuple(branches)


# What mlx-lm's classes of such families have in common.
MLX_CAN = frozenset({MlxCan.OWN_HEAD, MlxCan.ONE_KIND, MlxCan.PLAIN_HEADS})
# The types of a rope that mlx-lm makes. Source: its `rope_utils.py`, `initialize_rope`.
MLX_ROPES = frozenset({"linear", "llama3", "yarn", "longrope"})


def read_layers(read: Fields) -> tuple[Branches, ...]:
    """Equal layers, whose attention has a rope."""
    return (layer(read_attention(read), read_dense(read), read_norm(read)),) * read_n_layers(read)


def read_attention(read: Fields, *, qk_norm: Norm | None = None, **other: Any) -> Attention:
    """The attention of a config. `other` are fields of the block that are not this; a `rope` of None is none."""
    hidden, n_heads = read.number("hidden_size", int), read.number("num_attention_heads", int)
    n_kv_heads = read.number("num_key_value_heads", int, n_heads)
    if read.value("head_dim") is None and hidden % n_heads:
        read.faults.add(f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}")
    head_dim = read_head_dim(read, n_heads=n_heads, n_kv_heads=n_kv_heads, default=max(1, hidden // n_heads))
    if "rope" not in other:
        other["rope"] = read_rope(read, rope_settings(read), head_dim)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        qk_norm=qk_norm,
        is_biased=read.flag("attention_bias", False),
        **other,
    )


def read_dense(read: Fields, size: str = "intermediate_size") -> Dense:
    refuse(read, "mlp_bias", "biases of feed-forwards are not known: Dense in graph/blocks.py would have to say them")
    return Dense(size=read.number(size, int), activation=read_activation(read))


def read_activation(read: Fields) -> Activation:
    name = read.value("hidden_act")
    found = next((known for known in Activation if known.value == name), None)
    if found is None:
        expected = " or ".join(known.value for known in Activation)
        read.faults.add(f"hidden_act is {name!r}: expected {expected}; another one needs its line in graph/blocks.py")
    return found or Activation.SILU


def read_layer_types(read: Fields, default: Sequence[str], known: Sequence[str] = (FULL, SLIDING)) -> Sequence[str]:
    """The kind of each layer's attention: `layer_types`, or what the config's other fields say."""
    names = read.items("layer_types", str)
    return default if names is None else check_layer_types(read, names, n_layers=len(default), known=known)


def refuse(read: Fields, key: str, why: str) -> None:
    """A fault if a field says anything at all."""
    found = read.value(key)
    if found not in (None, False):
        read.faults.add(f"{key} is {found!r}: {why}")


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """What the configs of such families have, under the names that transformers 4 and 5 give it."""
    attention, dense = config.first(Attention), config.first(Dense)
    if attention is None:
        raise ValueError("a model of this family has attention")
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": attention.is_biased,
        "tie_word_embeddings": config.tied,
        "intermediate_size": dense and dense.size,
        "hidden_act": dense and dense.activation.value,
        **rope_fields(config),
    }
    return {key: value for key, value in fields.items() if value is not None}


def rope_fields(config: ModelConfig) -> dict[str, Any]:
    """The rope in both spellings; nothing of a model without one."""
    if not config.ropes:
        return {}
    settings = rope_settings(Fields(config.raw, aliases={}, defaults=config.family.defaults))
    theta = float(settings["rope_theta"])
    scaling = {key: value for key, value in settings.items() if key != "rope_theta"}
    return {
        "rope_theta": theta,
        "rope_parameters": {**settings, "rope_theta": theta},
        **({} if scaling == {"rope_type": "default"} else {"rope_scaling": scaling}),
    }


def window_fields(config: ModelConfig) -> dict[str, Any]:
    """Which layers see a window, and how long it is; None if there is none."""
    windows = [block.window for block in config.of_kind(Attention).values()]
    return {
        "layer_types": [SLIDING if window else FULL for window in windows],
        "sliding_window": next(filter(None, windows), None),
    }


def window_period(config: ModelConfig) -> int | None:
    """How many layers a run has, of which the last sees all and the others have a window; None of no such pattern."""
    windowed = [block.window is not None for block in config.of_kind(Attention).values()]
    period = windowed.index(False) + 1 if False in windowed else 0
    expected = [(i + 1) % period != 0 for i in range(len(windowed))] if period else []
    return period if windowed == expected else None
