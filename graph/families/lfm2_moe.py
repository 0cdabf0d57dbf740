"""LFM2 and LFM2.5 as mixtures of experts: after the first layers, the feed-forward is a choice among many.

Source: transformers `configuration_lfm2_moe.py`, `modeling_lfm2_moe.py`; the configs of LFM2-8B-A1B and LFM2-24B-A2B.
"""

from __future__ import annotations

from typing import Any

from ..blocks import Branches, Dense, Mixture, Scoring
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from .family import Family, GgufNames, MlxCan, MlxNames, Places, ServerNames
from .lfm2 import (
    ALIASES,
    GGUF_DEMANDS,
    GGUF_KEYS,
    GGUF_TENSORS,
    LAYER_PLACES,
    TOP_PLACES,
    common_fields,
    layer,
    read_mixers,
)
from .places import Place, expert_places
from .reading import check_chosen, read_norm

_PLACES: Places = {
    Role.ROUTER: [Place("feed_forward.gate.weight")],
    Role.EXPERT_BIAS: [Place("feed_forward.expert_bias")],
    **expert_places("feed_forward.experts", gate="w1", up="w3", down="w2"),
}

# mlx-lm stacks the experts, and renames the matrices of the dense layers too. Source: its `lfm2_moe.py`, `sanitize`.
_MLX_TENSORS = {
    Role.FFN_GATE: "feed_forward.gate_proj.weight",
    Role.FFN_UP: "feed_forward.up_proj.weight",
    Role.FFN_DOWN: "feed_forward.down_proj.weight",
    Role.EXPERT_GATE: "feed_forward.switch_mlp.gate_proj.weight",
    Role.EXPERT_UP: "feed_forward.switch_mlp.up_proj.weight",
    Role.EXPERT_DOWN: "feed_forward.switch_mlp.down_proj.weight",
}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    mixers, dense, mixture = read_mixers(read), Dense(size=read.number("intermediate_size", int)), _mixture(read)
    n_dense = read.number("num_dense_layers", int, least=0)
    if n_dense > len(mixers):
        read.faults.add(f"num_dense_layers {n_dense} exceeds the {len(mixers)} layers")
    return tuple(layer(mixer, dense if i < n_dense else mixture, read) for i, mixer in enumerate(mixers))


def _mixture(read: Fields) -> Mixture:
    mixture = Mixture(
        n_experts=read.number("num_experts", int),
        top_k=read.number("num_experts_per_tok", int),
        size=read.number("moe_intermediate_size", int),
        has_bias=read.flag("use_expert_bias", True),
        is_normalised=read.flag("norm_topk_prob", True),
        scaling=read.number("routed_scaling_factor", float, 1.0, least=0),
    )
    return check_chosen(read, mixture, "num_experts")


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    mixture, dense = config.shared(Mixture), config.shared(Dense)
    own: dict[str, Any] = {} if dense is None else {"intermediate_size": dense.size}
    if mixture is not None:
        own |= {
            "num_experts": mixture.n_experts,
            "num_experts_per_tok": mixture.top_k,
            "moe_intermediate_size": mixture.size,
            "num_dense_layers": len(config.of_kind(Dense)),
            "use_expert_bias": mixture.has_bias,
            "norm_topk_prob": mixture.is_normalised,
            "routed_scaling_factor": mixture.scaling,
        }
    return common_fields(config) | own


FAMILY = Family(
    name="LFM2-MoE",
    model_type="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    aliases=ALIASES,
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=TOP_PLACES,
    layer_places={**LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="lfm2moe",
        tensors=GGUF_TENSORS,
        demands=GGUF_DEMANDS | {Role.EXPERT_BIAS},
        has_convolutions=True,
        scoring=Scoring.SIGMOID,
        keys=("expert_feed_forward_length", "leading_dense_block_count", "expert_gating_func", *GGUF_KEYS),
    ),
    mlx=MlxNames(tensors=_MLX_TENSORS, can={MlxCan.MIXTURES}),
    servers=ServerNames(),
)
