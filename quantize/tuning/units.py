"""The units in which scales of a block count, and its offsets, under the second moments of inputs.

With its codes and counts as they are, a block is linear in its units, d · v + dmin · u, and the error has one least
place in them. They are rounded to float16 as they are stored, and moved only where that lowers the error.
"""

from __future__ import annotations

import numpy as np

from ...graph.dtypes import Float32
from ..committed import Committed


def refit_units(found: Committed, levels: Float32, moments: Float32, values: Float32, slopes: Float32) -> None:
    """Changes units, scales and offsets of rows, and with them values [n, n_cols] and slopes, errors times moments.

    Formats whose scales count have no zeros of their own.
    """
    if found.units is None:
        return
    n, n_blocks = found.units.shape
    width, runs = values.shape[1] // n_blocks, found.scales.shape[1] // n_blocks
    for b in range(n_blocks):
        columns, own = slice(b * width, (b + 1) * width), slice(b * runs, (b + 1) * runs)
        counts = _over(found.scales[:, own], found.units[:, b])
        minima = None
        if found.offsets is not None and found.offset_units is not None:
            minima = _over(found.offsets[:, own], found.offset_units[:, b])
        v = (levels[found.codes[:, columns]].reshape(n, runs, -1) * counts[..., None]).reshape(n, width)
        u = None if minima is None else np.repeat(minima, width // runs, axis=1)
        steps = _steps(found, b, (v, u), moments[columns, columns], slopes[:, columns])
        if not steps.any():
            continue
        found.units[:, b] += steps[0]
        found.scales[:, own] = counts * found.units[:, b, None]
        new = levels[found.codes[:, columns]].reshape(n, runs, -1) * found.scales[:, own, None]
        if minima is not None and found.offsets is not None and found.offset_units is not None:
            found.offset_units[:, b] += steps[1]
            found.offsets[:, own] = minima * found.offset_units[:, b, None]
            new += found.offsets[:, own, None]
        moved = new.reshape(n, width) - values[:, columns]
        values[:, columns] += moved
        slopes += moved @ moments[columns]


def _over(values: Float32, units: Float32) -> Float32:
    """How often units [n] go into values [n, runs], with their sign; never, where they are zero."""
    found: Float32 = np.rint(np.divide(values, units[:, None], out=np.zeros_like(values), where=units[:, None] != 0))
    return found


def _steps(
    found: Committed, b: int, ways: tuple[Float32, Float32 | None], moments: Float32, slopes: Float32
) -> Float32:
    """By how much units of a block move [2, n], so that they are float16 again: not at all where that is not better."""
    v, u = ways
    with_v = v @ moments
    by_v, vv = _dot(v, slopes), _dot(v, with_v)
    by_u = vu = uu = np.zeros_like(by_v)
    if u is not None:
        by_u, vu, uu = _dot(u, slopes), _dot(u, with_v), _dot(u, u @ moments)
    size = vv * uu - vu * vu
    is_both = size > 1e-6 * vv * uu
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wished = (
            np.where(is_both, -(by_v * uu - by_u * vu) / size, -by_v / vv),
            np.where(is_both, -(by_u * vv - by_v * vu) / size, 0),
        )
        moves = [
            np.zeros_like(by_v) if units is None else _to_half(units[:, b], step)
            for units, step in zip((found.units, found.offset_units), wished, strict=True)
        ]
        change = moves[0] * by_v + moves[1] * by_u + moves[0] * moves[1] * vu
        change += 0.5 * (moves[0] ** 2 * vv + moves[1] ** 2 * uu)
    steps = np.array(moves, np.float32)
    steps[:, ~(change < 0)] = 0
    return steps


def _to_half(units: Float32, steps: np.ndarray) -> np.ndarray:
    """Steps to what float16 holds next to where units [n] should be; none that changes the sign or twice the size."""
    new = (units + steps).astype(np.float16).astype(np.float32)
    ratio = new / units
    found: np.ndarray = np.where((ratio >= 0.5) & (ratio <= 2), new - units, 0).astype(np.float64)
    return found


def _dot(a: Float32, b: Float32) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b, dtype=np.float64)
