"""Qwen3 as a mixture of experts, which a softmax over all of them chooses.

Source: transformers `configuration_qwen3_moe.py`, `modeling_qwen3_moe.py`.
"""

from __future__ import annotations

from typing import Any

from ..blocks import Branches, FeedForward, Mixture, Scoring
from ..config import ModelConfig
from ..config_fields import Fields
from ..roles import Role
from . import decoder, qwen3
from .family import Family, GgufNames, MlxCan, MlxNames, OnnxNames, Places, ServerNames
from .places import Place, expert_places
from .reading import check_chosen, read_norm

_PLACES: Places = {
    Role.ROUTER: [Place("mlp.gate.weight")],
    **expert_places("mlp.experts", gate="gate_proj", up="up_proj", down="down_proj"),
}
_MLX_TENSORS = {
    Role.EXPERT_GATE: "mlp.switch_mlp.gate_proj.weight",
    Role.EXPERT_UP: "mlp.switch_mlp.up_proj.weight",
    Role.EXPERT_DOWN: "mlp.switch_mlp.down_proj.weight",
}


def _read_layers(read: Fields) -> tuple[Branches, ...]:
    norm, attentions = read_norm(read), qwen3.read_attentions(read)
    dense_layers = set(read.items("mlp_only_layers", int) or ())
    step = read.number("decoder_sparse_step", int, 1)
    kinds = [i not in dense_layers and (i + 1) % step == 0 for i in range(len(attentions))]
    mixture = _mixture(read)
    dense: FeedForward = mixture if all(kinds) else decoder.read_dense(read)
    return tuple(
        decoder.layer(attention, mixture if is_mixture else dense, norm)
        for attention, is_mixture in zip(attentions, kinds, strict=True)
    )


def _mixture(read: Fields) -> Mixture:
    """Sparse layers only know SiLU, as the blocks do. The weights' sum is used as it is."""
    decoder.read_activation(read)
    mixture = Mixture(
        n_experts=read.number("num_experts", int),
        top_k=read.number("num_experts_per_tok", int),
        size=read.number("moe_intermediate_size", int),
        scoring=Scoring.SOFTMAX,
        has_bias=False,
        is_normalised=read.flag("norm_topk_prob", False),
        sum_eps=0.0,
    )
    return check_chosen(read, mixture, "num_experts")


def _hub_fields(config: ModelConfig) -> dict[str, Any]:
    mixture = config.shared(Mixture)
    if mixture is None:
        raise ValueError("a model of this family has experts")
    return {
        **qwen3.hub_fields(config),
        "num_experts": mixture.n_experts,
        "num_experts_per_tok": mixture.top_k,
        "moe_intermediate_size": mixture.size,
        "norm_topk_prob": mixture.is_normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(config.n_layers) if i not in config.of_kind(Mixture)],
    }


FAMILY = Family(
    name="Qwen3-MoE",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    aliases={**decoder.ALIASES, "num_experts": ("num_local_experts",)},
    defaults={**decoder.DEFAULTS, "head_dim": None},
    read_layers=_read_layers,
    read_norm=read_norm,
    top_places=decoder.TOP_PLACES,
    layer_places={**decoder.LAYER_PLACES, **_PLACES},
    hub_fields=_hub_fields,
    gguf=GgufNames(
        architecture="qwen3moe",
        demands=frozenset({Role.Q_NORM, Role.K_NORM}),
        has_free_heads=True,
        scoring=Scoring.SOFTMAX,
        keys=("expert_feed_forward_length",),
    ),
    mlx=MlxNames(tensors=_MLX_TENSORS, can=decoder.MLX_CAN | {MlxCan.FREE_HEADS, MlxCan.MIXTURES}),
    onnx=OnnxNames(genai_type="qwen3"),
    servers=ServerNames(),
)
