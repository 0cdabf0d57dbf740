"""LFM3: LFM2's layers with norms on both sides, sliding windows, a rope for each kind of attention, and gated heads.

Source: transformers `configuration_lfm3.py`, `modeling_lfm3.py`; the config of LFM3-1.7B. A config may leave out what
is the class's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..blocks import Attention, Branch, Branches, Dense, Mixer, Norm, Rope, ShortConv
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from ..rotary import default_rope, proportional_rope
from .family import Family, GgufNames, MlxCan, MlxNames, OnnxNames, Places, RopeTables
from .lfm2 import GGUF_DEMANDS, GGUF_KEYS, LAYER_PLACES, TOP_PLACES
from .places import Place
from .reading import check_layer_types, read_head_dim, read_n_layers, read_norm

_CONV, _FULL, _SLIDING = "conv", "full_attention", "sliding_attention"
_PLACES: Places = {
    Role.POST_OPERATOR_NORM: [Place("post_operator_norm.weight")],
    Role.POST_FFN_NORM: [Place("post_ffn_norm.weight")],
    Role.ATTN_OUT: [Place("self_attn.o_proj.weight")],
    Role.Q_NORM: [Place("self_attn.q_norm.weight")],
    Role.K_NORM: [Place("self_attn.k_norm.weight")],
    Role.ATTN_GATE: [Place("self_attn.gate_proj.weight"), Place("self_attn.g_proj.weight")],
    **{
        role: [Place(f"self_attn.{name}.bias")]
        for role, name in (
            (Role.ATTN_Q_BIAS, "q_proj"),
            (Role.ATTN_K_BIAS, "k_proj"),
            (Role.ATTN_V_BIAS, "v_proj"),
            (Role.ATTN_OUT_BIAS, "o_proj"),
        )
    },
}
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128_000, "hidden_size": 2048, "intermediate_size": 7680, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "norm_eps": 1e-5, "conv_L_cache": 7,
    "sliding_window": 256, "max_position_embeddings": 128_000,
    "bos_token_id": 124_894, "eos_token_id": 124_900, "pad_token_id": 124_893,
}  # fmt: skip
_ROPES: dict[str, dict[str, Any]] = {
    _FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
    _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
_ROPE_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_RELABELLED = (
    "rope_parameters.full_attention calls a rotation of part of the head 'default', which transformers takes for a "
    "whole one: it is read as 'proportional', as the model was trained"
)

_MLX_CAN = {
    MlxCan.OWN_HEAD, MlxCan.ONE_KIND, MlxCan.FREE_HEADS, MlxCan.BIASES, MlxCan.GATES, MlxCan.WINDOWS, MlxCan.WINDOW_ROPE,
    MlxCan.PAIRS_REST, MlxCan.POST_NORMS,
}  # fmt: skip


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    norm = read_norm(read)
    post_norm = norm if read.flag("use_sandwich_norm", True) else None
    names, ropes = _layer_types(read), _ropes(read)
    kinds: dict[str, Mixer] = {
        _CONV: ShortConv(width=read.number("conv_L_cache", int, least=2), is_biased=read.flag("conv_bias", False)),
    }
    for kind in (_FULL, _SLIDING):
        if kind in names:
            kinds[kind] = _attention(read, norm, ropes, kind=kind)
    dense = Dense(size=read.number("intermediate_size", int))
    return tuple(
        tuple(Branch(norm=norm, block=block, post_norm=post_norm) for block in (kinds[name], dense)) for name in names
    )


def _layer_types(read: Fields) -> list[str]:
    n_layers, names = read_n_layers(read), read.items("layer_types", str)
    if names is None:
        return [_FULL if i % 4 == 2 else _SLIDING if i % 4 == 0 and i > 0 else _CONV for i in range(n_layers)]
    return check_layer_types(read, names, n_layers=n_layers, known=(_CONV, _FULL, _SLIDING))


def _attention(read: Fields, norm: Norm, ropes: Mapping[str, Any], *, kind: str) -> Attention:
    n_heads, n_kv_heads = read.number("num_attention_heads", int), read.number("num_key_value_heads", int)
    head_dim = read_head_dim(read, n_heads=n_heads, n_kv_heads=n_kv_heads, default=_DEFAULTS["head_dim"])
    rope = _rope(read, ropes, kind=kind, head_dim=head_dim)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope,
        window=read.number("sliding_window", int) if kind == _SLIDING else None,
        qk_norm=norm,
        is_gated=read.flag("use_attention_gate", True),
        is_biased=read.flag("attention_bias", False),
    )


def _ropes(read: Fields) -> Mapping[str, Any]:
    """The table of each kind of attention. Other places from which transformers would take a part of it are refused."""
    for key in ("rope_scaling", "partial_rotary_factor"):
        if (found := read.value(key)) is not None:
            read.faults.add(
                f"{key} is {found!r}: expected what ropes are in rope_parameters, for each kind of attention"
            )
    return _ROPES if read.value("rope_parameters") is None else read.table("rope_parameters")


def _rope(read: Fields, ropes: Mapping[str, Any], *, kind: str, head_dim: int) -> Rope:
    """The rope of a kind of layer.

    Released configs give full attention 'default' with partial_rotary_factor 0.5. The model was trained with half of
    its pairs at rest, which is what 'proportional' means; 'default' turns them all, whatever the factor.
    """
    where, table = f"rope_parameters.{kind}", ropes.get(kind)
    if not isinstance(table, Mapping) or table.get("rope_theta") is None:
        read.faults.add(f"{where} is {table!r}: expected an object with rope_type and rope_theta")
        table = _ROPES[kind]
    label = table.get("rope_type", table.get("type", "default"))
    theta = read.checked(f"{where}.rope_theta", table["rope_theta"], float)
    share = read.checked(f"{where}.partial_rotary_factor", table.get("partial_rotary_factor", 1.0), float, least=0)
    # That 'default' means a part of the head is known of full attention only.
    least = 0 if label == "proportional" or kind == _FULL else 1
    if label not in ("default", "proportional") or not least <= share <= 1:
        read.faults.add(
            f"{where} is of type {label!r} with partial_rotary_factor {share}: expected 'default' or 'proportional', "
            f"and {'at most' if least == 0 else 'a factor of'} 1; another rope needs its table in graph/rotary.py"
        )
    if unknown := sorted(key for key, value in table.items() if value is not None and key not in _ROPE_FIELDS):
        read.faults.add(
            f"{where} has {', '.join(unknown)}: expected {', '.join(sorted(_ROPE_FIELDS - {'type'}))} alone"
        )
    if label == "default" and share < 1 and _RELABELLED not in read.notes:
        read.notes.append(_RELABELLED)
    if read.faults:
        return Rope(theta=theta, inverse_frequencies=())
    return default_rope(theta, head_dim) if share == 1 else proportional_rope(theta, head_dim, share)


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    """With ropes labelled as what they are, so that transformers and mlx-lm read them right."""
    conv, attention, dense = config.first(ShortConv), config.first(Attention), config.shared(Dense)
    if attention is None or dense is None:
        raise ValueError("a model of this family has attention and dense feed-forwards")
    windows = [a for a in config.of_kind(Attention).values() if a.window is not None]
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": dense.size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "layer_types": [_layer_type(mixer) for mixer in config.mixers],
        "max_position_embeddings": config.context_length,
        "norm_eps": config.norm_eps,
        "conv_bias": bool(conv and conv.is_biased),
        "conv_L_cache": conv.width if conv else _DEFAULTS["conv_L_cache"],
        "sliding_window": windows[0].window if windows else _DEFAULTS["sliding_window"],
        "use_sandwich_norm": config.layers[0][0].post_norm is not None,
        "use_attention_gate": attention.is_gated,
        "attention_bias": attention.is_biased,
        "rope_parameters": {
            _layer_type(mixer): _rope_fields(mixer.rope)
            for mixer in config.mixers
            if isinstance(mixer, Attention) and mixer.rope
        },
        "tie_word_embeddings": config.tied,
    }


def _layer_type(mixer: Mixer) -> str:
    if isinstance(mixer, ShortConv):
        return _CONV
    return _FULL if mixer.window is None else _SLIDING


def _rope_fields(rope: Rope) -> dict[str, Any]:
    if not rope.is_partial:
        return {"rope_type": "default", "rope_theta": rope.theta}
    share = rope.n_turning / len(rope.inverse_frequencies)
    return {"rope_type": "proportional", "rope_theta": rope.theta, "partial_rotary_factor": share}


FAMILY = Family(
    name="LFM3",
    model_type="lfm3",
    architecture="Lfm3ForCausalLM",
    aliases={"norm_eps": ("rms_norm_eps",)},
    defaults=_DEFAULTS,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=TOP_PLACES,
    layer_places={**LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="lfm3",
        demands=GGUF_DEMANDS | {Role.ATTN_GATE},
        takes=frozenset({Role.POST_OPERATOR_NORM, Role.POST_FFN_NORM}),
        has_convolutions=True,
        has_windows=True,
        rope_tables=RopeTables.DEMANDED,
        has_free_heads=True,
        has_head_size=True,
        keys=(*GGUF_KEYS, "attention.sliding_window", "attention.sliding_window_pattern", "rope.dimension_count"),
        first_build=11938,
    ),
    mlx=MlxNames(is_released=False, can=_MLX_CAN),
    onnx=OnnxNames(model_type="lfm2", layer_types={_SLIDING: _FULL}),
)
