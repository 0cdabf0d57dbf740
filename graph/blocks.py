"""What a model is made of, as data: the reference runs these blocks, every target emits them.

A layer is a list of branches of the residual stream: x + scale * post_norm(block(norm(x))). A block says which weights
it has. Whatever a target cannot say of a block it refuses by that block's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .roles import Role
from .tensor import Shape

Shapes = dict[Role, Shape]


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm: x / sqrt(mean(x²) + eps), times a gain."""

    eps: float


class Activation(Enum):
    """What the gate of a feed-forward goes through, as configs of transformers spell it."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """The table of a rope for sequences of more than `longer_than` tokens, all of whose positions then turn by it."""

    inverse_frequencies: tuple[float, ...] = field(repr=False)
    longer_than: int
    divisors: tuple[float, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: pair i turns by position * inverse_frequencies[i] radians; zero is a pair that does not turn.

    Every rope type is such a table. `theta` is the base it was made from, which formats store; `factor` multiplies
    cosines and sines. With r frequencies the first 2r numbers of a head turn: pairs are their halves (i, i + r), or
    neighbours (2i, 2i + 1); the numbers behind them stay. `long` is another table for long sequences. `divisors` are what
    the default table was divided by, where it was made so: to the bit what formats store of it.
    """

    theta: float
    inverse_frequencies: tuple[float, ...] = field(repr=False)
    factor: float = 1.0
    pairs_neighbours: bool = False
    long: LongRope | None = None
    divisors: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def n_dims(self) -> int:
        """How many numbers of a head are paired."""
        return 2 * len(self.inverse_frequencies)

    @property
    def n_turning(self) -> int:
        """Pairs that turn."""
        return sum(frequency != 0 for frequency in self.inverse_frequencies)

    @property
    def is_partial(self) -> bool:
        return self.n_turning < len(self.inverse_frequencies)


@dataclass(frozen=True, kw_only=True)
class ShortConv:
    """Gated depthwise convolution: out(C * conv(B * x)), over the last `width` positions if it is causal.

    Else it is centred, and sees as many positions before a token as after it.
    """

    name = "short convolution"

    width: int
    is_biased: bool = False
    is_causal: bool = True

    def shapes(self, hidden: int) -> Shapes:
        biased = self.is_biased
        return {
            Role.CONV_IN: (3 * hidden, hidden),
            **({Role.CONV_IN_BIAS: (3 * hidden,)} if biased else {}),
            Role.CONV_KERNEL: (hidden, self.width),
            **({Role.CONV_KERNEL_BIAS: (hidden,)} if biased else {}),
            Role.CONV_OUT: (hidden, hidden),
            **({Role.CONV_OUT_BIAS: (hidden,)} if biased else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Grouped-query attention of heads of `head_dim`.

    `window` is the number of positions a token sees, itself included; None for all. `qk_norm` is that of each head's
    query and key before they turn. A gated head is multiplied by the sigmoid of its row of ATTN_GATE. `is_biased` says
    that all four projections are. `score_scale` is what scores are multiplied with, where that is not 1 / sqrt(D).
    """

    name = "attention"

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    qk_norm: Norm | None = None
    is_gated: bool = False
    is_biased: bool = False
    is_causal: bool = True
    score_scale: float | None = None

    @property
    def q_size(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """What scores are multiplied with before the softmax."""
        return float(self.head_dim**-0.5) if self.score_scale is None else self.score_scale

    def shapes(self, hidden: int) -> Shapes:
        return {
            Role.ATTN_Q: (self.q_size, hidden),
            Role.ATTN_K: (self.kv_size, hidden),
            Role.ATTN_V: (self.kv_size, hidden),
            **(self._biases(hidden) if self.is_biased else {}),
            **({Role.Q_NORM: (self.head_dim,), Role.K_NORM: (self.head_dim,)} if self.qk_norm else {}),
            **({Role.ATTN_GATE: (self.n_heads, hidden)} if self.is_gated else {}),
            Role.ATTN_OUT: (hidden, self.q_size),
        }

    def _biases(self, hidden: int) -> Shapes:
        return {
            Role.ATTN_Q_BIAS: (self.q_size,),
            Role.ATTN_K_BIAS: (self.kv_size,),
            Role.ATTN_V_BIAS: (self.kv_size,),
            Role.ATTN_OUT_BIAS: (hidden,),
        }


@dataclass(frozen=True, kw_only=True)
class Dense:
    """down(activation(gate(x)) * up(x))."""

    name = "dense feed-forward"

    size: int
    activation: Activation = Activation.SILU

    def shapes(self, hidden: int) -> Shapes:
        return {
            Role.FFN_GATE: (self.size, hidden),
            Role.FFN_UP: (self.size, hidden),
            Role.FFN_DOWN: (hidden, self.size),
        }


class Scoring(Enum):
    """How a router's outputs become scores: each by itself, or all experts' together."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A weighted sum of the `top_k` experts of a token: their scores are what `scoring` makes of the router's outputs.

    Experts are ranked with the bias and weighed without it; `is_normalised` divides the weights by their sum plus
    `sum_eps`, `scaling` multiplies them.
    """

    name = "mixture of experts"

    n_experts: int
    top_k: int
    size: int
    scoring: Scoring = Scoring.SIGMOID
    has_bias: bool = True
    is_normalised: bool = True
    sum_eps: float = 1e-6
    scaling: float = 1.0

    def shapes(self, hidden: int) -> Shapes:
        n = self.n_experts
        return {
            Role.ROUTER: (n, hidden),
            **({Role.EXPERT_BIAS: (n,)} if self.has_bias else {}),
            Role.EXPERT_GATE: (n, self.size, hidden),
            Role.EXPERT_UP: (n, self.size, hidden),
            Role.EXPERT_DOWN: (n, hidden, self.size),
        }


Mixer = ShortConv | Attention
FeedForward = Dense | Mixture
Block = Mixer | FeedForward

# The norms of a branch by what it holds: before the block, and of what it gives.
_MIXER_NORMS = Role.OPERATOR_NORM, Role.POST_OPERATOR_NORM
_FEED_FORWARD_NORMS = Role.FFN_NORM, Role.POST_FFN_NORM


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What is added to the residual stream: scale * post_norm(block(norm(x))); a norm may be missing."""

    block: Block
    norm: Norm | None
    post_norm: Norm | None = None
    scale: float = 1.0

    @property
    def norm_role(self) -> Role:
        return (_MIXER_NORMS if isinstance(self.block, Mixer) else _FEED_FORWARD_NORMS)[0]

    @property
    def post_norm_role(self) -> Role:
        return (_MIXER_NORMS if isinstance(self.block, Mixer) else _FEED_FORWARD_NORMS)[1]

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Every norm of the branch, the block's own among them."""
        own = self.block.qk_norm if isinstance(self.block, Attention) else None
        return tuple(norm for norm in (self.norm, own, self.post_norm) if norm)

    def shapes(self, hidden: int) -> Shapes:
        """Every weight of the branch."""
        return {
            **({self.norm_role: (hidden,)} if self.norm else {}),
            **self.block.shapes(hidden),
            **({self.post_norm_role: (hidden,)} if self.post_norm else {}),
        }


class Pooling(Enum):
    """Which vectors a model gives of a text: one for every token, or one of them all. As sentence-transformers spells them."""

    NONE = "none"
    CLS = "cls"
    MEAN = "mean"
    LAST = "lasttoken"


@dataclass(frozen=True, kw_only=True)
class VectorHead:
    """What stands in the head's place in a model that gives vectors: pooling, then a projection to `projected` numbers.

    `projected` is None without a projection; `is_normalised` says that vectors are divided by their length.
    """

    pooling: Pooling
    projected: int | None = None
    is_normalised: bool = False

    name = "head that gives vectors"

    @property
    def is_per_token(self) -> bool:
        """Whether a text has a vector for each of its tokens."""
        return self.pooling is Pooling.NONE


# One layer: its branches, in the order in which they are added.
Branches = tuple[Branch, ...]
