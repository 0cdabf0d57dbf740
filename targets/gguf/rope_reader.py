"""The rope that a file's keys and tensors amount to: the inverse of `ropes`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...graph.blocks import Rope
from ...graph.dtypes import Float32
from ...graph.errors import Faults
from ...graph.rotary import default_rope, inverse_frequencies, linear_rope, llama3_rope, long_rope, yarn_rope
from ...quantize.gguf_file.tensor_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from .numbers import Numbers
from .ropes import LINEAR, LONG, YARN, usual_yarn_factor

# A factor from here on is a pair at rest: no table of a rope goes so far.
_AT_REST = 1e20
# With what Llama's tables are made everywhere, but for the factor and the trained length, which is a power of two.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_CLOSE = 1e-6

Tables = Mapping[str, Float32]
Settings = dict[str, Any]


def read_rope(
    said: Numbers, tables: Tables, *, head_dim: int, has_partial: bool, is_windowed: bool, faults: Faults
) -> tuple[Rope, Settings]:
    """A rope, and what transformers' configs say of it; of a window its own base alone."""
    theta = (said.window_theta if is_windowed else None) or said.theta or 0
    n_dims = _n_dims(said, head_dim, has_partial=has_partial, faults=faults)
    if not theta >= 1:
        faults.add(f"a rope has the base {theta}: expected 1 or more")
        theta = 1.0
    plain = {"rope_type": "default", "rope_theta": theta}
    if faults or is_windowed:
        return default_rope(theta, n_dims), plain
    for name, values in tables.items():
        if values.shape != (n_dims // 2,):
            faults.add(f"the rope has {values.size} factors in '{name}': expected {n_dims // 2}")
            return default_rope(theta, n_dims), plain
    rope, own = _read(said, tables, theta, n_dims, faults)
    share = {} if n_dims == head_dim else {"partial_rotary_factor": n_dims / head_dim}
    return rope, {**plain, **own, **share}


def _n_dims(said: Numbers, head_dim: int, *, has_partial: bool, faults: Faults) -> int:
    n_dims = said.rotated or head_dim
    if has_partial and not n_dims % 2 and n_dims <= head_dim:
        return n_dims
    if n_dims != head_dim:
        faults.add(f"rope.dimension_count is {n_dims}: expected {head_dim}, as heads of keys have")
    return head_dim


def _read(said: Numbers, tables: Tables, theta: float, n_dims: int, faults: Faults) -> tuple[Rope, Settings]:
    kind, factor, length = said.rope_type, said.rope_factor, said.trained_length or said.context_length or 1
    more = 1.0 if said.attention_factor is None else said.attention_factor
    trained = {} if said.trained_length is None else {"original_max_position_embeddings": length}
    if LONG_FACTORS in tables or kind == LONG:
        return _long(said, tables, theta, n_dims, faults)
    if kind == YARN and factor:
        betas: Settings = {
            name: value for name in ("beta_fast", "beta_slow") if (value := getattr(said, name)) is not None
        }
        told: Settings = {} if more == 1 else {"attention_factor": more * usual_yarn_factor(factor)}
        rope = yarn_rope(theta, n_dims, factor=factor, trained_length=length, **betas, **told)
        return rope, {"rope_type": YARN, "factor": factor, **trained, **betas, **told}
    if more != 1:
        faults.add(f"rope.scaling.attn_factor is {more}: a factor of this rope is not read here")
    if ROPE_FACTORS in tables:
        return _divided(tables[ROPE_FACTORS], theta, n_dims)
    if kind not in (None, "none", LINEAR):
        faults.add(f"rope.scaling.type is {kind!r:.40}: a rope that is scaled so is not read here")
    if factor in (None, 0.0, 1.0) or kind == "none":
        return default_rope(theta, n_dims), trained
    return linear_rope(theta, n_dims, factor=factor), {"rope_type": LINEAR, "factor": factor}


def _long(said: Numbers, tables: Tables, theta: float, n_dims: int, faults: Faults) -> tuple[Rope, Settings]:
    context = said.context_length or 1
    length, more = said.trained_length or context, 1.0 if said.attention_factor is None else said.attention_factor
    missing = [name for name in (LONG_FACTORS, SHORT_FACTORS) if name not in tables]
    if missing:
        faults.add(f"the rope is of two tables, and there is no tensor '{missing[0]}'")
        return default_rope(theta, n_dims), {}
    short, long = (list(map(_shortest, tables[name])) for name in (SHORT_FACTORS, LONG_FACTORS))
    settings = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": length}
    rope = long_rope(theta, short, long, trained_length=length, factor=max(context / length, 1.0))
    if math.isclose(rope.factor, more, rel_tol=_CLOSE):  # which follows from the two lengths
        return rope, {"rope_type": LONG, **settings}
    return replace(rope, factor=more), {"rope_type": LONG, **settings, "attention_factor": more}


def _divided(factors: Float32, theta: float, n_dims: int) -> tuple[Rope, Settings]:
    """The default table divided by the factors: Llama's, if it is; else as it stands, which a config may have words for."""
    numbers = {**_LLAMA3, "factor": _shortest(factors.max())}
    for trained_length in (1 << n for n in range(4, 24)):
        found = llama3_rope(theta, n_dims, **numbers, trained_length=trained_length)
        if np.allclose(np.array(found.divisors, np.float32), factors, rtol=_CLOSE, atol=0) and factors.max() > 1:
            return found, {"rope_type": "llama3", **numbers, "original_max_position_embeddings": trained_length}
    rope = default_rope(theta, n_dims)
    turned = np.where(factors >= _AT_REST, np.float32(0), inverse_frequencies(rope) / factors)
    return replace(rope, inverse_frequencies=tuple(turned.astype(np.float32).tolist())), {}


def _shortest(value: Any) -> float:
    """The shortest number that is this float32."""
    return float(str(np.float32(value)))
