"""The rope that mlx-lm makes of a config: what its classes read of `rope_scaling`, and what they take where it is silent.

Of two tables, for texts of the trained length and for longer ones, it has the second alone, whatever the text. Most texts
are shorter, so that the first is written in its place: longer ones then turn by a table that the model was not trained for.
Source: mlx-lm `mlx_lm/models/rope_utils.py`, `initialize_rope`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...graph.blocks import Rope
from ...graph.config import ModelConfig
from ...graph.rotary import linear_rope, llama3_rope, long_rope, yarn_rope
from ..cache_length import longest_context

_TRAINED, _SCALING = "original_max_position_embeddings", "rope_scaling"
_SHORT, _LONG = "short_factor", "long_factor"
Fields = Mapping[str, Any]

_ONE_TABLE = (
    "mlx-lm turns texts of any length by one table, which here is that of texts up to {n} tokens: the context is {n}, not "
    "{context}"
)


def rope_type(written: Fields) -> str:
    """What mlx-lm takes the rope of a config for."""
    scaling = _scaling(written)
    return str(scaling.get("type") or scaling.get("rope_type", "default"))


def rope_made(written: Fields, rope: Rope) -> Rope | None:
    """What it makes of a rope with that base and so many numbers that turn; None if a setting that it demands is missing."""
    maker = _MAKERS.get(rope_type(written))
    try:
        return maker and maker(_scaling(written), written, rope)
    except KeyError:
        return None


def with_one_table(fields: Fields) -> dict[str, Any]:
    """Fields of a config whose rope has two tables, with the first in place of the second."""
    scaling = _scaling(fields)
    if _LONG not in scaling:
        return dict(fields)
    return {**fields, _SCALING: {**scaling, _LONG: scaling[_SHORT]}}


def rope_notes(config: ModelConfig) -> tuple[str, ...]:
    """What a reader must know of a model whose rope has two tables."""
    n, context = longest_context(config), config.context_length
    return (_ONE_TABLE.format(n=n, context=context),) if n < context else ()


def _scaling(written: Fields) -> Fields:
    found = written.get(_SCALING)
    return found if isinstance(found, Mapping) else {}


def _linear(scaling: Fields, written: Fields, rope: Rope) -> Rope:
    return linear_rope(rope.theta, rope.n_dims, factor=scaling["factor"])


def _llama3(scaling: Fields, written: Fields, rope: Rope) -> Rope:
    return llama3_rope(
        rope.theta,
        rope.n_dims,
        factor=scaling["factor"],
        low_freq_factor=scaling.get("low_freq_factor", 1.0),
        high_freq_factor=scaling.get("high_freq_factor", 4.0),
        trained_length=scaling.get(_TRAINED, 8192),
    )


def _yarn(scaling: Fields, written: Fields, rope: Rope) -> Rope:
    return yarn_rope(
        rope.theta,
        rope.n_dims,
        factor=scaling["factor"],
        trained_length=scaling.get(_TRAINED, 4096),
        beta_fast=scaling.get("beta_fast", 32),
        beta_slow=scaling.get("beta_slow", 1),
    )


def _long(scaling: Fields, written: Fields, rope: Rope) -> Rope:
    trained = scaling[_TRAINED] if _TRAINED in scaling else written[_TRAINED]
    table = scaling[_LONG]
    factor = written["max_position_embeddings"] / trained
    return long_rope(rope.theta, table, table, trained_length=trained, factor=factor)


_MAKERS: Mapping[str, Callable[[Fields, Fields, Rope], Rope]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
}
