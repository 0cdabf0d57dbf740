"""Gemma 3, its text model: gains stored less one, norms on both sides, GELU, five windowed layers to one that sees all.

Source: transformers `configuration_gemma3.py`, `modeling_gemma3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..blocks import Activation, Attention, Branches
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder
from .family import Family, GgufNames, MlxCan, MlxNames, OnnxNames, Places, Scales, ServerNames
from .places import GainLessOne
from .reading import read_n_layers, read_norm
from .ropes import read_rope, settled

_GAINS = {
    Role.OPERATOR_NORM: "input_layernorm.weight",
    Role.POST_OPERATOR_NORM: "post_attention_layernorm.weight",
    Role.FFN_NORM: "pre_feedforward_layernorm.weight",
    Role.POST_FFN_NORM: "post_feedforward_layernorm.weight",
    Role.Q_NORM: "self_attn.q_norm.weight",
    Role.K_NORM: "self_attn.k_norm.weight",
}
_LAYER_PLACES: Places = {**decoder.LAYER_PLACES, **{role: [GainLessOne(name)] for role, name in _GAINS.items()}}
_TOP_PLACES: Places = {**decoder.TOP_PLACES, Role.FINAL_NORM: [GainLessOne("model.norm.weight")]}
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_THETAS = {decoder.FULL: ("rope_theta", 1e6), decoder.SLIDING: ("rope_local_base_freq", 1e4)}

_MLX_CAN = {
    MlxCan.FREE_HEADS, MlxCan.WINDOWS_BY_TURNS, MlxCan.WINDOW_ROPE, MlxCan.SCORE_SCALE, MlxCan.ROOT_SCALE, MlxCan.GELU,
    MlxCan.POST_NORMS,
}  # fmt: skip


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        decoder.refuse(read, key, "capped scores and logits need their field in graph/blocks.py")
    norm, dense = read_norm(read), decoder.read_dense(read)
    settings = _ropes(read)
    kinds = {kind: _attention(read, settings, kind=kind) for kind in _THETAS}
    names = decoder.read_layer_types(read, _pattern(read))
    return tuple(decoder.layer(kinds[name], dense, norm, post_norm=norm) for name in names)


def _pattern(read: Fields) -> list[str]:
    """Of each run of `sliding_window_pattern` layers the last sees all."""
    period = read.number("sliding_window_pattern", int, 6)
    return [decoder.SLIDING if (i + 1) % period else decoder.FULL for i in range(read_n_layers(read))]


def _attention(read: Fields, settings: Mapping[str, Mapping[str, Any]], *, kind: str) -> Attention:
    scalar = read.number("query_pre_attn_scalar", float, least=1e-9)
    bare = decoder.read_attention(read, qk_norm=read_norm(read), rope=None, score_scale=float(scalar**-0.5))
    window = read.number("sliding_window", int) if kind == decoder.SLIDING else None
    return replace(bare, rope=read_rope(read, settings[kind], bare.head_dim), window=window)


def _ropes(read: Fields) -> dict[str, Mapping[str, Any]]:
    """The settings of each kind of layer; `rope_scaling`, which is older, is of those that see all."""
    given = read.table("rope_parameters")
    found: dict[str, Mapping[str, Any]] = {}
    for kind, (key, default) in _THETAS.items():
        table = given.get(kind)
        own = dict(table) if isinstance(table, Mapping) else {}
        if kind == decoder.FULL:
            own |= read.table("rope_scaling")
        found[kind] = settled(own, theta=read.value(key), default=default)
    return found


def _read_scales(read: Fields) -> Scales:
    """The root of the hidden size. Source: `Gemma3TextScaledWordEmbedding`, which rounds it to the weights' type."""
    return Scales(embedding=float(read.number("hidden_size", int) ** 0.5))


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    windows, attention = decoder.window_fields(config), config.first(Attention)
    settings = _ropes(Fields(config.raw, aliases={}, defaults=_DEFAULTS))
    full = {key: value for key, value in settings[decoder.FULL].items() if key != "rope_theta"}
    common = decoder.common_fields(config)
    common["hidden_activation"] = common.pop("hidden_act")
    return {
        **{key: value for key, value in common.items() if not key.startswith("rope_")},
        "layer_types": windows["layer_types"],
        "sliding_window": windows["sliding_window"] or _DEFAULTS["sliding_window"],
        "query_pre_attn_scalar": attention and round(attention.scale**-2),
        "rope_theta": settings[decoder.FULL]["rope_theta"],
        "rope_local_base_freq": settings[decoder.SLIDING]["rope_theta"],
        "rope_parameters": settings,
        **({} if full == {"rope_type": "default"} else {"rope_scaling": full}),
    }


def _gguf_score_scale(config: ModelConfig, attention: Attention) -> float:
    """llama.cpp tells the 27B by its layers."""
    size = config.hidden_size // attention.n_heads if config.n_layers == 62 else attention.head_dim
    return float(size**-0.5)


FAMILY = Family(
    name="Gemma 3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    aliases=decoder.ALIASES,
    defaults=_DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    read_scales=_read_scales,
    top_places=_TOP_PLACES,
    layer_places=_LAYER_PLACES,
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="gemma3",
        demands=frozenset({Role.Q_NORM, Role.K_NORM, Role.POST_OPERATOR_NORM, Role.POST_FFN_NORM}),
        has_windows=True,
        window_period=6,
        has_free_heads=True,
        activation=Activation.GELU_TANH,
        embedding_scale=lambda config: float(config.hidden_size**0.5),
        score_scale=_gguf_score_scale,
        keys=("attention.sliding_window", "attention.sliding_window_pattern"),
        has_head_size=True,
    ),
    mlx=MlxNames(
        can=decoder.MLX_CAN | _MLX_CAN,
        ropes=decoder.MLX_ROPES,
        fields=lambda config: {"sliding_window_pattern": decoder.window_period(config)},
    ),
    onnx=OnnxNames(is_wide=True),
    servers=ServerNames(),
)
