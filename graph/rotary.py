"""Rotary angles, their cosines and sines, with the same bits on every machine.

Powers, cosines and sines of numpy, torch and the C library differ in the last bit from one CPU to another, and
artifacts store them. Here only operations are used that IEEE 754 defines to the last bit: + - * / and rounding.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .blocks import LongRope, Rope
from .dtypes import Float32

# π/2 in two parts: products of the first, of 33 bits, with a number of turns up to 2^20 are exact.
# Source: FreeBSD msun `e_rem_pio2.c`.
_HALF_PI, _HALF_PI_REST = 1.57079632673412561417, 6.07710050650619224932e-11
# Of x^3, x^5, … and x^4, x^6, … for |x| ≤ π/4, to less than one bit of float64. Source: FreeBSD msun `k_sin.c`, `k_cos.c`.
_SIN = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COS = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip

_AT_ONCE = 1 << 16  # angles: a range of a table is sixteen times that, and in float64 with all its temporaries 100 MB

_Float64 = NDArray[np.float64]

# A table of a rotation has half as many entries; no model's heads are near this.
LARGEST_HEAD = 1 << 12


def default_rope(theta: float, n_dims: int) -> Rope:
    """All pairs of the first n_dims numbers turn: pair i by 1 / theta^(2i / n_dims), rounded to float32 where transformers rounds."""
    return Rope(theta=theta, inverse_frequencies=_powers(theta, n_dims))


def linear_rope(theta: float, n_dims: int, *, factor: float) -> Rope:
    """The default one, slower by a factor. Source: `_compute_linear_scaling_rope_parameters` of transformers."""
    return _of_table(theta, _table(theta, n_dims) / np.float32(factor))


def llama3_rope(
    theta: float, n_dims: int, *, factor: float, low_freq_factor: float, high_freq_factor: float, trained_length: int
) -> Rope:
    """Pairs whose wave is long beside the trained context are slower by the factor, short ones are as they were.

    Between the two the share of each goes from one to the other. Source: `_compute_llama3_parameters` of transformers,
    in float32 as there.
    """
    table, one = _table(theta, n_dims), np.float32(1)
    waves = np.float32(2 * np.pi) / table
    share = (np.float32(trained_length) / waves - np.float32(low_freq_factor)) / np.float32(
        high_freq_factor - low_freq_factor
    )
    slow = table / np.float32(factor)
    between = (one - share) * slow + share * table
    is_long, is_short = waves > trained_length / low_freq_factor, waves < trained_length / high_freq_factor
    found = _of_table(theta, np.where(is_long, slow, np.where(is_short, table, between)))
    # llama.cpp's converter divides in this order
    divisors = np.where(
        is_long, np.float32(factor), np.where(is_short, one, one / ((one - share) / np.float32(factor) + share))
    )
    return replace(found, divisors=tuple(divisors.tolist()))


def yarn_rope(
    theta: float,
    n_dims: int,
    *,
    factor: float,
    trained_length: int,
    attention_factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Rope:
    """Pairs that turn often in the trained context are as they were, those that turn rarely are slower by the factor.

    Cosines and sines grow with the logarithm of the factor. Source: Peng et al. 2023, and `_compute_yarn_parameters`
    of transformers.
    """
    low, high = (_pair_that_turns(turns, theta, n_dims, trained_length) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_dims - 1)
    ramp = (np.arange(n_dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-3))
    kept = 1 - np.clip(ramp, 0, 1)
    fast, slow = (np.float32(1) / (np.float32(by) * _bases(theta, n_dims)) for by in (1, factor))
    rope = _of_table(theta, slow * (1 - kept) + fast * kept)
    grown = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return replace(rope, factor=grown if attention_factor is None else attention_factor)


def long_rope(
    theta: float,
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    *,
    trained_length: int,
    factor: float,
    attention_factor: float | None = None,
) -> Rope:
    """A divisor for each pair, others for sequences longer than the trained context.

    `factor` is how much longer the context has become, with whose logarithm cosines and sines grow.
    Source: `_compute_longrope_parameters` of transformers.
    """
    bases = _bases(theta, 2 * len(short_factors))
    divisors = [np.array(factors, np.float32) for factors in (short_factors, long_factors)]
    short, long = (np.float32(1) / (each * bases) for each in divisors)
    grown = math.sqrt(1 + math.log(factor) / math.log(trained_length)) if factor > 1 else 1.0
    return replace(
        _of_table(theta, short),
        factor=grown if attention_factor is None else attention_factor,
        divisors=tuple(divisors[0].tolist()),
        long=LongRope(
            inverse_frequencies=tuple(long.tolist()), longer_than=trained_length, divisors=tuple(divisors[1].tolist())
        ),
    )


def proportional_rope(theta: float, head_dim: int, share: float) -> Rope:
    """The first share of the pairs turns as in `default_rope`, the others do not turn.

    Source: transformers `modeling_rope_utils.py`, `_compute_proportional_rope_parameters`.
    """
    n_turning = int(share * head_dim // 2)
    turning = _powers(theta, head_dim)[:n_turning]
    return Rope(theta=theta, inverse_frequencies=(*turning, *(0.0,) * (head_dim // 2 - n_turning)))


def _pair_that_turns(turns: float, theta: float, n_dims: int, length: int) -> float:
    """Which pair turns so often within a length, between pairs where none does."""
    return n_dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _of_table(theta: float, table: Float32) -> Rope:
    return Rope(theta=theta, inverse_frequencies=tuple(table.astype(np.float32).tolist()))


def _table(theta: float, n_dims: int) -> Float32:
    return np.array(_powers(theta, n_dims), np.float32)


@cache
def _powers(theta: float, n_dims: int) -> tuple[float, ...]:
    return tuple((np.float32(1) / _bases(theta, n_dims)).tolist())


@cache
def _bases(theta: float, n_dims: int) -> Float32:
    """theta^(2i / n_dims), of which the table of a default rope is the inverse."""
    exponents = np.arange(0, n_dims, 2, dtype=np.float32) / np.float32(n_dims)
    with decimal.localcontext(prec=40):
        base = decimal.Decimal(float(np.float32(theta)))
        powers = [float(base ** decimal.Decimal(float(exponent))) for exponent in exponents]
    return np.array(powers, np.float64).astype(np.float32)


def inverse_frequencies(rope: Rope) -> Float32:
    """The table of a rope [n_dims / 2]."""
    return np.array(rope.inverse_frequencies, np.float32)


def frequency_factors(rope: Rope) -> Float32:
    """What the default table of the same base is divided by [n_dims / 2]: infinity for a pair that does not turn."""
    if rope.divisors is not None:
        return np.array(rope.divisors, np.float32)
    own = inverse_frequencies(rope)
    with np.errstate(divide="ignore"):
        factors: Float32 = _table(rope.theta, rope.n_dims) / own
    return factors


def of_length(rope: Rope, n_tokens: int) -> Rope:
    """The rope as sequences of that length turn by it."""
    if rope.long is None:
        return rope
    is_long = n_tokens > rope.long.longer_than
    table = rope.long.inverse_frequencies if is_long else rope.inverse_frequencies
    return replace(
        rope, inverse_frequencies=table, long=None, divisors=rope.long.divisors if is_long else rope.divisors
    )


def rotary_angles(rope: Rope, start: int, stop: int) -> Float32:
    """Angles [stop - start, n_dims / 2] of positions, in radians: products in float32, as the model computes them."""
    return np.arange(start, stop, dtype=np.float32)[:, None] * inverse_frequencies(rope)


def exact_angles(rope: Rope, positions: range) -> _Float64:
    """Angles [n, n_dims / 2] of positions below 2^20, in radians, not rounded."""
    return np.array(positions, np.float64)[:, None] * inverse_frequencies(rope).astype(np.float64)


def cosine(angles: Float32 | _Float64) -> Float32:
    """The float32 nearest to the cosine of each angle from 0 to 2^20."""
    return _of_quadrant(angles, 1)


def sine(angles: Float32 | _Float64) -> Float32:
    """As `cosine`."""
    return _of_quadrant(angles, 0)


def _of_quadrant(angles: Float32 | _Float64, shift: int) -> Float32:
    """The sine of each angle plus `shift` quarter turns."""
    found = np.empty(angles.size, np.float32)
    flat = angles.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        found[start : start + _AT_ONCE] = _sine_of(flat[start : start + _AT_ONCE], shift)
    return found.reshape(angles.shape)


def _sine_of(angles: Float32 | _Float64, shift: int) -> Float32:
    exact = angles.astype(np.float64)
    turns = np.rint(exact * (2 / np.pi))
    rest = exact - turns * _HALF_PI
    rest -= turns * _HALF_PI_REST
    quadrant = (turns.astype(np.int64) + shift) & 3
    values = np.where(quadrant & 1, _cos(rest), _sin(rest))
    return np.where(quadrant & 2, -values, values).astype(np.float32)


def _sin(x: _Float64) -> _Float64:
    square = x * x
    return x + x * square * _polynomial(square, _SIN)


def _cos(x: _Float64) -> _Float64:
    square = x * x
    return 1 - square * 0.5 + square * square * _polynomial(square, _COS)


def _polynomial(x: _Float64, coefficients: tuple[float, ...]) -> _Float64:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total
