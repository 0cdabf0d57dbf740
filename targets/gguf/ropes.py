"""How a file says a rope that is not the default one of its base.

| the rope is                | the file has                                                                            |
|----------------------------|-----------------------------------------------------------------------------------------|
| linear, or of type yarn    | `rope.scaling.type`, `.factor`, of yarn `.original_context_length`: llama.cpp computes it |
| another table              | `rope_freqs.weight`, what the default table is divided by, 1e30 for a pair at rest        |
| one table, and one of long texts | `rope_factors_short.weight`, `rope_factors_long.weight`: by the size of the context   |
| with a factor of its own   | `rope.scaling.attn_factor`, of yarn beside the factor that is usual there                 |

Source: llama.cpp `conversion/base.py`, `conversion/llama.py`, `conversion/phi.py`; `src/llama-context.cpp`,
`src/llama-model.cpp`, `get_rope_factors`; `ggml_rope_yarn_corr_dims`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...graph.blocks import Attention, LongRope, Rope
from ...graph.config import ModelConfig
from ...graph.dtypes import Float32
from ...graph.families.family import GgufNames, RopeTables
from ...graph.rotary import frequency_factors, inverse_frequencies, linear_rope, yarn_rope
from ...quantize.gguf_file.tensor_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, gguf_names

LINEAR, YARN, LONG = "linear", "yarn", "longrope"
_AT_REST = np.float32(1e30)
_FULL = "full_attention"
_TRAINED_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class SaidRope:
    """Fields of `Numbers`, and tensors by name."""

    numbers: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Float32] = field(default_factory=dict)


def rope_of(config: ModelConfig) -> Rope | None:
    """The rope that keys and tensors are about: that of layers that see every position, else any."""
    blocks = sorted(config.of_kind(Attention).values(), key=lambda block: block.window is not None)
    return next((block.rope for block in blocks if block.rope), None)


def rope_numbers(config: ModelConfig) -> Mapping[str, Any]:
    """What the keys say of the rope; nothing of a default one."""
    rope = rope_of(config)
    said = None if rope is None else said_rope(config, rope)
    return said.numbers if said else {}


def rope_tensors(config: ModelConfig) -> Mapping[str, Float32]:
    rope = rope_of(config)
    said = None if rope is None else said_rope(config, rope)
    return said.tensors if said else {}


def said_rope(config: ModelConfig, rope: Rope) -> SaidRope | None:
    """How a file of the model says its rope; None if it cannot."""
    names = gguf_names(config.family)
    if rope.pairs_neighbours:
        return None
    if names.rope_tables is RopeTables.DEMANDED:
        # of layers that see every position: where there is none, the graph has no place for it
        is_used = any(block.rope and block.window is None for block in config.of_kind(Attention).values())
        return None if rope.factor != 1 or rope.long else SaidRope(tensors=_tensor(rope) if is_used else {})
    trained = _trained_length(config) if names.rope_tables is RopeTables.BY_LENGTH else None
    usual = {} if trained is None else {"trained_length": trained}
    if is_default(rope):
        return SaidRope(numbers=usual)
    if rope.long is not None:
        return _by_length(rope, rope.long, names)
    if (computed := _computed(config, rope)) is not None:
        return SaidRope(numbers={**usual, **computed})
    if names.rope_tables is not RopeTables.TAKEN:
        return None
    return SaidRope(numbers=_factor(rope.factor), tensors=_tensor(rope))


def is_default(rope: Rope) -> bool:
    """Whether the base alone says it."""
    return rope.factor == 1 and rope.long is None and not (frequency_factors(rope) != 1).any()


def _tensor(rope: Rope) -> dict[str, Float32]:
    return {ROPE_FACTORS: np.minimum(frequency_factors(rope), _AT_REST)}


def _factor(factor: float) -> dict[str, float]:
    return {} if factor == 1 else {"attention_factor": factor}


def _by_length(rope: Rope, long: LongRope, names: GgufNames) -> SaidRope | None:
    if names.rope_tables not in (RopeTables.BY_LENGTH, RopeTables.TAKEN):
        return None
    # the type is said where the graph of the architecture asks for it
    typed = {"rope_type": LONG} if names.rope_tables is RopeTables.TAKEN else {}
    of_long = replace(rope, inverse_frequencies=long.inverse_frequencies, divisors=long.divisors)
    return SaidRope(
        numbers={**typed, "trained_length": long.longer_than, "attention_factor": rope.factor},
        tensors={LONG_FACTORS: frequency_factors(of_long), SHORT_FACTORS: frequency_factors(rope)},
    )


def _computed(config: ModelConfig, rope: Rope) -> dict[str, Any] | None:
    """The keys by which llama.cpp computes the table; None if it would compute another."""
    settings = rope_settings_of(config)
    kind, factor = settings.get("rope_type"), settings.get("factor")
    if not isinstance(factor, int | float):
        return None
    if kind == LINEAR and _same(rope, linear_rope(rope.theta, rope.n_dims, factor=factor)):
        return {"rope_type": LINEAR, "rope_factor": float(factor), **_factor(rope.factor)}
    if kind == YARN:
        betas: dict[str, Any] = {
            name: float(settings[name]) for name in ("beta_fast", "beta_slow") if settings.get(name) is not None
        }
        length = settings.get(_TRAINED_LENGTH) or config.context_length
        if _same(rope, yarn_rope(rope.theta, rope.n_dims, factor=factor, trained_length=length, **betas)):
            more = rope.factor / usual_yarn_factor(factor)
            said = {"rope_type": YARN, "rope_factor": float(factor), "trained_length": length, **betas}
            return said | _factor(1.0 if math.isclose(more, 1, rel_tol=1e-6) else more)
    return None


def usual_yarn_factor(factor: float) -> float:
    """What cosines and sines of yarn are multiplied with, unless told otherwise."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def rope_settings_of(config: ModelConfig) -> Mapping[str, Any]:
    """What the config says of the rope of layers that see every position."""
    try:
        found = config.family.hub_fields(config).get("rope_parameters")
    except ValueError:  # of blocks that the family has not
        found = None
    if isinstance(found, Mapping) and isinstance(found.get(_FULL), Mapping):
        found = found[_FULL]
    return found if isinstance(found, Mapping) else {}


def _trained_length(config: ModelConfig) -> int:
    found = config.raw.get(_TRAINED_LENGTH, rope_settings_of(config).get(_TRAINED_LENGTH))
    return found if isinstance(found, int) else config.context_length


def _same(one: Rope, other: Rope) -> bool:
    return bool((inverse_frequencies(one) == inverse_frequencies(other)).all())
