"""Quants of the GGUF target, with llama-quantize's meaning.

A quant is named after the encoding of most matrices; a mixture stores some of them wider, by role and layer.
What decides the head decides a tied embedding too: the target asks for a tied embedding as LM_HEAD.
Source: llama.cpp `src/llama-quant.cpp`, `tensor_allows_quantization`, `llama_tensor_get_type_impl`,
`tensor_type_fallback`; `conversion/base.py`, `prepare_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...graph.blocks import Attention
from ...graph.config import ModelConfig
from ...graph.roles import EXPERTS, Role, Trait, of_trait
from ..encoding import get_encoding
from ..policy import Policy, Rule

FLOATS = ("F32", "F16", "BF16")

# Never narrowed: the runtime's kernels for these want float32.
_ALWAYS_F32 = Rule("F32", of_trait(Trait.NORM, Trait.BIAS, Trait.KERNEL, Trait.ROUTER))
_FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), "F16"),
}  # fmt: skip

# What a tensor may be stored as where encodings are allotted: rows of whole super-blocks, and others. Of types of one
# size those with the lower error.
_MIXED = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
_MIXED_NARROW = ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")

_HEAD = of_trait(Trait.HEAD)
_K, _V, _OUT = frozenset({Role.ATTN_K}), frozenset({Role.ATTN_V}), frozenset({Role.ATTN_OUT})
_DOWN = frozenset({Role.FFN_DOWN, Role.EXPERT_DOWN})


@dataclass(frozen=True)
class _Model:
    """What mixtures depend on. Units: `gqa` query heads a key-value head in layer 0, 0 if that is a convolution."""

    gqa: int
    has_importance: bool


def _always(i: int, n: int) -> bool:
    return True


def _ends_and_every_third(i: int, n: int) -> bool:
    """`use_more_bits`: the first and last eighth, and every third layer between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _first_eighth(i: int, n: int) -> bool:
    return i < n // 8


@dataclass(frozen=True)
class _Wider:
    """Weights of these roles get this encoding in the i-th of n layers if `where` and in a model if `when`.

    Layers are counted among those with attention for its values, and among all for the down projections.
    """

    encoding: str
    roles: frozenset[Role]
    where: Callable[[int, int], bool] = _always
    when: Callable[[_Model], bool] = lambda model: True


@dataclass(frozen=True)
class _Quant:
    """A named quant: its class, number, the encoding of most matrices, of the head, and what is wider, first match wins.

    `file_type` is that of `enum llama_ftype`.
    """

    class_name: str
    file_type: int
    base: str
    head: str = "Q6_K"
    wider: tuple[_Wider, ...] = ()


_WIDE_HEADS = (_Wider("Q5_K", _V, when=lambda model: model.gqa >= 4),)
_WIDE_START = (_Wider("Q5_K", _DOWN, _first_eighth, when=lambda model: not model.has_importance),)


def _guarded(encoding: str) -> tuple[_Wider, ...]:
    """The first down projections can go astray with an importance matrix."""
    return (_Wider(encoding, _DOWN, _first_eighth, when=lambda model: model.has_importance),)


def _alternating(encoding: str) -> tuple[_Wider, ...]:
    return (_Wider(encoding, _V | _DOWN, _ends_and_every_third),)


_QUANTS = {
    "F32": _Quant("f32", 0, "F32", "F32"),
    "F16": _Quant("f16", 1, "F16", "F16"),
    "BF16": _Quant("f16", 32, "BF16", "BF16"),
    "Q8_0": _Quant("q8", 7, "Q8_0", "Q8_0"),
    "Q6_K": _Quant("q6", 18, "Q6_K"),
    "Q5_K_M": _Quant("q5", 17, "Q5_K", wider=_alternating("Q6_K")),
    "Q5_K_S": _Quant("q5", 16, "Q5_K"),
    "Q5_1": _Quant("q5", 9, "Q5_1"),
    "Q5_0": _Quant("q5", 8, "Q5_0", wider=_guarded("Q5_1")),
    "Q4_K_M": _Quant("q4", 15, "Q4_K", wider=_alternating("Q6_K")),
    "Q4_K_S": _Quant(
        "q4", 14, "Q4_K", wider=(_Wider("Q5_K", _V, lambda i, n: i < 4), _Wider("Q5_K", _DOWN, _first_eighth))
    ),
    "Q4_1": _Quant("q4", 3, "Q4_1"),
    "Q4_0": _Quant("q4", 2, "Q4_0", wider=_guarded("Q4_1")),
    "IQ4_NL": _Quant("q4", 25, "IQ4_NL", wider=_WIDE_HEADS + _WIDE_START),
    "IQ4_XS": _Quant("q4", 30, "IQ4_XS", wider=_WIDE_HEADS + _WIDE_START),
    "MXFP4_MOE": _Quant("q4", 38, "MXFP4", "Q8_0"),
    "Q3_K_L": _Quant("q3", 13, "Q3_K", wider=(_Wider("Q5_K", _V | _OUT | _DOWN),)),
    "Q3_K_M": _Quant(
        "q3",
        12,
        "Q3_K",
        wider=(
            _Wider("Q5_K", _V, lambda i, n: i < 2),
            _Wider("Q5_K", _DOWN, lambda i, n: i < n // 16),
            _Wider("Q4_K", _V | _OUT | _DOWN),
        ),
    ),
    "Q3_K_S": _Quant("q3", 11, "Q3_K"),
    # No gates are stated below three bits.
    "Q2_K": _Quant(
        "q3",
        10,
        "Q2_K",
        wider=(_Wider("Q4_K", _V, when=lambda model: model.gqa >= 4), _Wider("Q3_K", _V | _OUT | _DOWN)),
    ),
}
FILE_TYPES = {name: quant.file_type for name, quant in _QUANTS.items()}
# llama-quantize takes a model of exactly eight experts for Mixtral: keys and values in eight bits, and in these
# quants the attention's output in five.
_MIXTRAL_EXPERTS = 8
# Of Llama 70B it widens values of these types, of which there are few.
_NARROW_VALUES, _WIDE_VALUES = ("Q3_K", "Q4_K"), "Q5_K"
_MIXTRAL_OUT = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}


def mixable(n_cols: int) -> tuple[str, ...]:
    """The types that rows of a matrix may be allotted."""
    return _MIXED if get_encoding("Q4_K").refusal(n_cols) is None else _MIXED_NARROW


def gguf_policy(quant: str, config: ModelConfig, *, has_importance: bool = False, pure: bool = False) -> Policy:
    """The policy of a quant for a model; `pure` stores every matrix alike."""
    chosen = _QUANTS[quant]
    rules = [] if pure else _mixture(quant, config, has_importance=has_importance)
    return Policy(
        name=quant,
        class_name=chosen.class_name,
        rules=(_ALWAYS_F32, *rules, Rule(chosen.base)),
        fallbacks=_FALLBACKS,
    )


def _mixture(quant: str, config: ModelConfig, *, has_importance: bool) -> list[Rule]:
    chosen = _QUANTS[quant]
    head = Rule(chosen.head, _HEAD)
    if quant == "MXFP4_MOE":
        return [head, Rule(chosen.base, EXPERTS), Rule("Q8_0")]
    first, mixture = config.mixers[0], config.mixture
    model = _Model(first.n_heads // first.n_kv_heads if isinstance(first, Attention) else 0, has_importance)
    wider = [each for each in chosen.wider if each.when(model)]
    if mixture and mixture.n_experts == _MIXTRAL_EXPERTS and quant not in FLOATS:
        wider[:0] = [_Wider("Q8_0", _K | _V), _Wider("Q5_K" if quant in _MIXTRAL_OUT else chosen.base, _OUT)]
    if _has_wide_values(config):
        wider = [*(part for each in wider for part in _with_wide_values(each)), _Wider(_WIDE_VALUES, _V)]
        wider = wider if chosen.base in _NARROW_VALUES else wider[:-1]
    return [head, *(rule for each in wider for rule in _rules(each, config))]


def _has_wide_values(config: ModelConfig) -> bool:
    """Whether llama-quantize takes the model for Llama 70B."""
    names, first = config.family.gguf, config.mixers[0]
    is_large = names is not None and names.wide_values == config.n_layers
    return is_large and isinstance(first, Attention) and first.n_heads != first.n_kv_heads


def _with_wide_values(wider: _Wider) -> tuple[_Wider, ...]:
    if wider.encoding not in _NARROW_VALUES or Role.ATTN_V not in wider.roles:
        return (wider,)
    return replace(wider, encoding=_WIDE_VALUES, roles=_V), replace(wider, roles=wider.roles - _V)


def _rules(wider: _Wider, config: ModelConfig) -> list[Rule]:
    rules = []
    for role in wider.roles:
        layers = list(config.of_kind(Attention)) if role is Role.ATTN_V else range(config.n_layers)
        chosen = frozenset(layer for i, layer in enumerate(layers) if wider.where(i, len(layers)))
        rules.append(Rule(wider.encoding, frozenset({role}), chosen))
    return rules


# The quants by name; what is wider depends on the model, see `gguf_policy`.
POLICIES: tuple[Policy, ...] = tuple(
    Policy(name=name, class_name=quant.class_name, rules=(_ALWAYS_F32, Rule(quant.base)), fallbacks=_FALLBACKS)
    for name, quant in _QUANTS.items()
)
