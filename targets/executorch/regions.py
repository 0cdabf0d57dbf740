"""The parts of the model that XNNPACK computes, each a pure function of its matrices and inputs.

A region is traced as a call of the placeholder operator `lfm_convert::region` that only knows the shapes of
its results. It is lowered by itself, once for all layers it looks the same in, and put in the placeholder's
place. What XNNPACK does not take stays outside: reductions, slices of a dynamic length, caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...graph.blocks import Activation, Scoring
from ...graph.roles import Role

LIBRARY = "lfm_convert"
# The one kind that runs on a condition: its last input says whether, and is not its function's.
EXPERT = "expert"
# The kinds that differ by what their block says: routers by scoring, dense feed-forwards by activation.
ROUTERS = {Scoring.SIGMOID: "router", Scoring.SOFTMAX: "router_softmax"}
DENSE = {Activation.SILU: "dense", Activation.GELU_TANH: "dense_gelu_tanh"}
# Ending of a kind that gives what a block gives, where the kind without it adds that to the stream.
BARE = "_bare"

Activate = Callable[..., Tensor]


@dataclass(frozen=True)
class Matrices:
    """The matrices of a region. `quantize` rounds their inputs, or gives them back as they are."""

    tensors: Sequence[Tensor]
    quantize: Callable[[Tensor], Tensor]

    def apply(self, x: Tensor, start: int = 0, stop: int | None = None) -> list[Tensor]:
        """x times each of these matrices transposed; x is quantized once for all of them."""
        x = self.quantize(x)
        return [linear(x, matrix) for matrix in self.tensors[start:stop]]


@dataclass(frozen=True)
class Region:
    """A kind of region: its function, and the roles of the matrices it takes (every cut of each, in order)."""

    function: Callable[..., tuple[Tensor, ...]]
    matrices: tuple[Role, ...]


def conv_in(weights: Matrices, x: Tensor, square: Tensor, gain: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
    """B * x' and C."""
    normed = _norm(x, square, gain)
    b, c, x = _biased(weights.apply(normed), biases)
    return b * x, c


def conv_out(weights: Matrices, x: Tensor, c: Tensor, *rest: Tensor) -> Tensor:
    """out(C * sum of shifted inputs times taps); `rest` is K inputs [1, S, H] and K taps [H]."""
    return weights.apply(c * _convolved(rest))[0]


def conv_out_biased(
    weights: Matrices, x: Tensor, c: Tensor, kernel_bias: Tensor, out_bias: Tensor, *rest: Tensor
) -> Tensor:
    return weights.apply(c * (_convolved(rest) + kernel_bias))[0] + out_bias


def attention_in(weights: Matrices, x: Tensor, square: Tensor, gain: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values."""
    return _biased(weights.apply(_norm(x, square, gain)), biases)


def attention_in_gated(
    weights: Matrices, x: Tensor, square: Tensor, gain: Tensor, *biases: Tensor
) -> tuple[Tensor, ...]:
    """Queries, keys, values, and what each head's result is multiplied with."""
    *heads, factors = weights.apply(_norm(x, square, gain))
    return *_biased(heads, biases), torch.sigmoid(factors)


def rotate(weights: Matrices, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Norm and half-split rotation of queries and keys.

    Shapes: four halves [1, S, heads, d / 2], two mean squares [1, S, heads, 1], four gains [d / 2],
    cos and sin [S, 1, d / 2].
    """
    *heads, cos, sin = inputs
    return tuple(_turned(first, second, cos, sin) for first, second in _normed_halves(heads))


def norm_heads(weights: Matrices, *inputs: Tensor) -> tuple[Tensor, ...]:
    """As `rotate` of heads that do not turn."""
    return tuple(torch.cat(halves, dim=-1) for halves in _normed_halves(inputs))


def turn(
    weights: Matrices, q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, ...]:
    """As `rotate` of heads without norms."""
    return _turned(q1, q2, cos, sin), _turned(k1, k2, cos, sin)


def turn_part(weights: Matrices, *inputs: Tensor) -> tuple[Tensor, ...]:
    """As `turn` of heads in three parts: the two that are paired, and a rest that stays."""
    *heads, cos, sin = inputs
    return tuple(_turned(*heads[i : i + 2], cos, sin, heads[i + 2]) for i in (0, 3))


def gate(weights: Matrices, attended: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
    """Heads [1, S, heads, d] times factors [1, S, heads, 1]. No region changes a shape: that is left to the graph."""
    return (attended * factors,)


def attention_out(weights: Matrices, x: Tensor, attended: Tensor, *bias: Tensor) -> Tensor:
    (found,) = _biased(weights.apply(attended), bias)
    return found


def dense(
    weights: Matrices, x: Tensor, square: Tensor, gain: Tensor, *coefficients: Tensor, activate: Activate
) -> Tensor:
    return _gated(activate, _norm(x, square, gain), weights, *coefficients)


def add_normed(weights: Matrices, x: Tensor, found: Tensor, square: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
    """x plus the norm of what a block gave."""
    return (x + _norm(found, square, gain),)


def router(weights: Matrices, x: Tensor, square: Tensor, gain: Tensor, *, scoring: Scoring) -> tuple[Tensor, ...]:
    """The normed input, and each expert's score."""
    normed = _norm(x, square, gain)
    return normed, scores_of(weights.apply(normed)[0], scoring)


def expert(weights: Matrices, normed: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    """One expert's contribution: `share` [1, S, 1] is 0 for tokens that did not choose it."""
    return (_gated(_silu, normed, weights) * share,)


def head(weights: Matrices, x: Tensor, square: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
    return (weights.apply(_norm(x, square, gain))[0],)


def _norm(x: Tensor, square: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(square) * gain


def _normed_halves(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Halves of queries, then of keys, normed: of four halves, two mean squares, four gains."""
    for i, square in enumerate(inputs[4:6]):
        (first, second), (gain1, gain2) = inputs[2 * i : 2 * i + 2], inputs[6 + 2 * i : 8 + 2 * i]
        yield _norm(first, square, gain1), _norm(second, square, gain2)


def scores_of(outputs: Tensor, scoring: Scoring) -> Tensor:
    """Scores [..., E] of what a router gives."""
    return torch.sigmoid(outputs) if scoring is Scoring.SIGMOID else torch.softmax(outputs, dim=-1)


def _turned(first: Tensor, second: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> Tensor:
    return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], dim=-1)


def _biased(products: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Products with their biases added, if there are any."""
    return tuple(x + bias for x, bias in zip(products, biases, strict=True)) if biases else tuple(products)


def _convolved(rest: Sequence[Tensor]) -> Tensor:
    width = len(rest) // 2
    mixed = rest[0] * rest[width]
    for k in range(1, width):
        mixed = mixed + rest[k] * rest[width + k]
    return mixed


def _gated(activate: Activate, x: Tensor, weights: Matrices, *coefficients: Tensor) -> Tensor:
    gate, up = weights.apply(x, 0, 2)
    return weights.apply(activate(gate, *coefficients) * up, 2)[0]


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _gelu_tanh(x: Tensor, slope: Tensor, cubic: Tensor) -> Tensor:
    """As a sigmoid, since (1 + tanh(u)) / 2 is that of 2u.

    XNNPACK's partitioner takes `gelu` whatever its approximation, and computes the exact one.
    """
    return x * torch.sigmoid(x * (x * x * cubic + slope))


_SLOPE, _CUBIC = 2 * (2 / math.pi) ** 0.5, 0.044715
# What an activation takes beside x, each a tensor [1]: a region has no constants but its matrices.
COEFFICIENTS: Mapping[Activation, tuple[float, ...]] = {
    Activation.SILU: (),
    Activation.GELU_TANH: (_SLOPE, _SLOPE * _CUBIC),
}


_HEADS = Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V
# What a block gives, of the stream [1, S, H] and further inputs: the last regions of branches.
_ENDS: Mapping[str, tuple[Callable[..., Tensor], tuple[Role, ...]]] = {
    "conv_out": (conv_out, (Role.CONV_OUT,)),
    "conv_out_biased": (conv_out_biased, (Role.CONV_OUT,)),
    "attention_out": (attention_out, (Role.ATTN_OUT,)),
    **{
        DENSE[activation]: (partial(dense, activate=activate), (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN))
        for activation, activate in ((Activation.SILU, _silu), (Activation.GELU_TANH, _gelu_tanh))
    },
}


def _bare(end: Callable[..., Tensor], weights: Matrices, x: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (end(weights, x, *inputs),)


def _added(end: Callable[..., Tensor], weights: Matrices, x: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (x + end(weights, x, *inputs),)


REGIONS: Mapping[str, Region] = {
    "conv_in": Region(conv_in, (Role.CONV_IN,)),
    "attention_in": Region(attention_in, _HEADS),
    "attention_in_gated": Region(attention_in_gated, (*_HEADS, Role.ATTN_GATE)),
    "rotate": Region(rotate, ()),
    "norm_heads": Region(norm_heads, ()),
    "turn": Region(turn, ()),
    "turn_part": Region(turn_part, ()),
    "gate": Region(gate, ()),
    "add_normed": Region(add_normed, ()),
    **{kind: Region(partial(router, scoring=scoring), (Role.ROUTER,)) for scoring, kind in ROUTERS.items()},
    EXPERT: Region(expert, (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN)),
    "head": Region(head, (Role.LM_HEAD,)),
    **{name: Region(partial(_added, end), roles) for name, (end, roles) in _ENDS.items()},
    **{name + BARE: Region(partial(_bare, end), roles) for name, (end, roles) in _ENDS.items()},
}


@dataclass(frozen=True)
class RegionName:
    """`dense.3`, `expert.3.17`, `head`: the kind, the layer and the expert of one call."""

    kind: str
    layer: int | None = None
    expert: int | None = None

    @classmethod
    def parse(cls, text: str) -> RegionName:
        kind, *numbers = text.split(".")
        return cls(kind, *map(int, numbers))


def call_region(name: str, inputs: Sequence[Tensor], widths: Sequence[int], like: Sequence[int] = ()) -> list[Tensor]:
    """Results of a region, result i of the shape of input like[i] (the first, by default) with widths[i] columns."""
    _register()
    return torch.ops.lfm_convert.region(list(inputs), name, list(widths), list(like or [0] * len(widths)))


@cache
def _register() -> None:
    """Tells torch of the operator, which it can only be told once a process."""
    torch.library.define(f"{LIBRARY}::region", "(Tensor[] inputs, str name, int[] widths, int[] like) -> Tensor[]")

    def shapes(inputs: list[Tensor], name: str, widths: list[int], like: list[int]) -> list[Tensor]:
        return [inputs[i].new_empty(*inputs[i].shape[:-1], width) for i, width in zip(like, widths, strict=True)]

    torch.library.register_fake(f"{LIBRARY}::region", shapes)


def mean_square(x: Tensor, eps: float) -> Tensor:
    """What a norm divides by, squared: [..., 1]."""
    return (x * x).mean(-1, keepdim=True) + eps
