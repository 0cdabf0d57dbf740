"""The weight graph: what every exporter reads and every artifact is compared with."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .assets import Assets
from .checkpoint import Checkpoint
from .config import ModelConfig, Operator
from .tensor import TensorView
from .tokenizer import Tokenizer


class Role(enum.Enum):
    """What a weight does. Policies and layouts speak in roles, never in name patterns.

    Shapes: with H hidden, V vocabulary, K conv width, Q/KV attention sizes, D head size, F/M dense and
    expert feed-forward sizes, E experts.
    """

    EMBED = "embed"  # [V, H]
    FINAL_NORM = "final_norm"  # [H]
    LM_HEAD = "lm_head"  # [V, H], absent when tied
    OPERATOR_NORM = "operator_norm"  # [H]
    FFN_NORM = "ffn_norm"  # [H]
    CONV_IN = "conv_in"  # [3H, H], rows are B, C, x
    CONV_IN_BIAS = "conv_in_bias"  # [3H]
    CONV_KERNEL = "conv_kernel"  # [H, K], oldest tap first
    CONV_KERNEL_BIAS = "conv_kernel_bias"  # [H]
    CONV_OUT = "conv_out"  # [H, H]
    CONV_OUT_BIAS = "conv_out_bias"  # [H]
    ATTN_Q = "attn_q"  # [Q, H]
    ATTN_K = "attn_k"  # [KV, H]
    ATTN_V = "attn_v"  # [KV, H]
    ATTN_OUT = "attn_out"  # [H, Q]
    Q_NORM = "q_norm"  # [D]
    K_NORM = "k_norm"  # [D]
    FFN_GATE = "ffn_gate"  # [F, H], w1
    FFN_UP = "ffn_up"  # [F, H], w3
    FFN_DOWN = "ffn_down"  # [H, F], w2
    ROUTER = "router"  # [E, H]
    EXPERT_BIAS = "expert_bias"  # [E]
    EXPERT_GATE = "expert_gate"  # [E, M, H]
    EXPERT_UP = "expert_up"  # [E, M, H]
    EXPERT_DOWN = "expert_down"  # [E, H, M]


NORMS = frozenset({Role.FINAL_NORM, Role.OPERATOR_NORM, Role.FFN_NORM, Role.Q_NORM, Role.K_NORM})
BIASES = frozenset({Role.CONV_IN_BIAS, Role.CONV_KERNEL_BIAS, Role.CONV_OUT_BIAS, Role.EXPERT_BIAS})
EXPERTS = frozenset({Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN})


@dataclass(frozen=True)
class Weight:
    """One weight of the graph; `layer` is None outside the layers."""

    role: Role
    layer: int | None
    view: TensorView

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape


@dataclass(frozen=True)
class Layer:
    """One block: operator_norm, operator, residual, ffn_norm, feed-forward, residual."""

    index: int
    operator: Operator
    is_moe: bool
    weights: Mapping[Role, Weight]

    def __getitem__(self, role: Role) -> TensorView:
        return self.weights[role].view

    def get(self, role: Role) -> TensorView | None:
        weight = self.weights.get(role)
        return weight.view if weight else None


@dataclass(frozen=True, kw_only=True)
class WeightGraph:
    """A model as roles and lazy tensors. `checkpoint` is None for a graph declared from a config alone."""

    name: str
    folder: Path
    config: ModelConfig
    top: Mapping[Role, Weight]
    layers: tuple[Layer, ...]
    tokenizer: Tokenizer | None
    assets: Assets
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __getitem__(self, role: Role) -> TensorView:
        return self.top[role].view

    @property
    def head(self) -> TensorView:
        """[V, H]: the language-model head, which is the embedding when tied."""
        return self.top.get(Role.LM_HEAD, self.top[Role.EMBED]).view

    @property
    def is_tied(self) -> bool:
        return Role.LM_HEAD not in self.top

    def weights(self) -> Iterator[Weight]:
        """Every weight once, in model order: embedding, final norm, head, then layer by layer."""
        yield from self.top.values()
        for layer in self.layers:
            yield from layer.weights.values()

    def with_weights(self, views: Mapping[tuple[Role, int | None], TensorView]) -> WeightGraph:
        """The same model with other tensors in place of those given, such as an artifact's decoded ones.

        A head among them unties a tied model: some formats store the token table and the head apart.
        """

        def swap(weights: Mapping[Role, Weight]) -> dict[Role, Weight]:
            return {r: replace(w, view=views.get((w.role, w.layer), w.view)) for r, w in weights.items()}

        layers = tuple(replace(layer, weights=swap(layer.weights)) for layer in self.layers)
        top = swap(self.top)
        head = views.get((Role.LM_HEAD, None))
        if head is not None:
            top[Role.LM_HEAD] = Weight(Role.LM_HEAD, None, head)
        return replace(self, top=top, layers=layers)

    @property
    def n_parameters(self) -> int:
        return sum(w.view.n_rows * w.view.n_cols for w in self.weights())
