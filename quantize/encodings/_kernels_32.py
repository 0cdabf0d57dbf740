"""Encoders of the plain 32-element formats.

| kind | stored | level | value |
|---|---|---|---|
| signed (Q4_0, Q5_0) | d = extreme / -n | trunc(x / d + n + 0.5) | d * (level - n) |
| ranged (Q4_1, Q5_1) | d = (max - min) / (2n - 1), m = min | trunc((x - m) / d + 0.5) | d * level + m |
| Q8_0 | d = largest magnitude / 127 | round(x / d) | d * level |

with n = 8 (4 bits) or 16 (5 bits); the extreme is the element farthest from zero, the first of equals.
Divisions are by the float32 inverse, as in C. With importance the first two kinds search for the scale instead.
Arguments of every kernel: blocks [n, 32]; importance [blocks of a row, 32], or no rows for none; out [n, bytes].
Source: llama.cpp `ggml/src/ggml-quants.c`, `quantize_row_*_ref` and `quantize_row_*_impl`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._jit import LANES, Lanes, Records, bits, float_of, half, kernel, level, load_importance, magnitude, ordered
from ._runs import found_levels
from ._search import BASE, INVERSE, MINIMUM, ONE, SCALE, ZERO, search_ranged, search_signed
from ._vectors import empty_lanes, load

Blocks = NDArray[np.float32]
Words = NDArray[np.uint64]
# Of eight bytes in a word: the lowest bit of each, a factor that gathers those in the highest byte, the low halves.
_ONES, _GATHER = np.uint64(0x0101010101010101), np.uint64(0x0102040810204080)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_SIGN, _MAGNITUDE = np.int32(-0x8000_0000), np.int32(0x7FFF_FFFF)
# Truncation after adding the float below one half, with the value's sign, is C's roundf: half away from zero.
_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))


@kernel
def encode_q4_0(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Levels -8 … 7."""
    _encode_signed(blocks, importance, 8, out)


@kernel
def encode_q5_0(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Levels -16 … 15."""
    _encode_signed(blocks, importance, 16, out)


@kernel
def encode_q4_1(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Levels 0 … 15 above a minimum."""
    _encode_ranged(blocks, importance, 8, out)


@kernel
def encode_q5_1(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Levels 0 … 31 above a minimum."""
    _encode_ranged(blocks, importance, 16, out)


@kernel
def encode_q8_0(blocks: Blocks, importance: Blocks, out: Records) -> None:
    """Levels -127 … 127; importance is not used, as in ggml."""
    for b in range(len(blocks)):
        x, record = blocks[b], out[b]
        d = float_of(magnitude(x)) / np.float32(127)
        inverse = _inverse(d)
        _put_half(d, record, 0)
        for j in range(32):
            step = x[j] * inverse
            away = float_of(np.int32((bits(step) & _SIGN) | bits(_ALMOST_HALF)))
            record[2 + j] = np.uint8(np.int32(step + away))


@kernel
def _encode_signed(blocks: Blocks, importance: Blocks, n: int, out: Records) -> None:
    if len(importance):
        _search_blocks(blocks, importance, n, False, out)
        return
    codes = np.empty(32, np.uint8)
    words = codes.view(np.uint64)
    # a step at a time for many blocks: of one alone each step would wait for the one before
    inverses, middles = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for start in range(0, len(blocks), LANES):
        n_lanes = min(LANES, len(blocks) - start)
        for i in range(n_lanes):
            inverses[i] = _extreme(blocks[start + i])
        for i in range(n_lanes):
            d = inverses[i] / np.float32(-n)
            inverses[i] = _inverse(d)
            # where C's inverse would be infinite the levels are 0, not the middle
            middles[i] = ZERO if inverses[i] == ZERO and d != ZERO else np.float32(n + 0.5)
            _put_half(d, out[start + i], 0)
        for i in range(n_lanes):
            _pack(blocks[start + i], ZERO, inverses[i], middles[i], n, codes, words, out[start + i, 2:])


@kernel
def _encode_ranged(blocks: Blocks, importance: Blocks, n: int, out: Records) -> None:
    if len(importance):
        _search_blocks(blocks, importance, n, True, out)
        return
    codes = np.empty(32, np.uint8)
    words = codes.view(np.uint64)
    for b in range(len(blocks)):
        low, high = _range(blocks[b])
        d = (high - low) / np.float32(2 * n - 1)
        _put_half(d, out[b], 0)
        _put_half(low, out[b], 2)
        _pack(blocks[b], low, _inverse(d), np.float32(0.5), n, codes, words, out[b, 4:])


@kernel
def _inverse(d: np.float32) -> np.float32:
    """1 / d, but 0 of zero and where d is so small that it would be infinite: C on x86 makes level 0 of that."""
    inverse = ONE / d
    return ZERO if d == ZERO or np.isinf(inverse) else inverse


@kernel
def _put_half(value: np.float32, record: Records, at: int) -> None:
    stored = half(value)
    record[at] = np.uint8(stored & np.uint16(255))
    record[at + 1] = np.uint8(stored >> np.uint16(8))


# Floats of one sign are in order as integers, and the compiler makes vector instructions of a maximum of integers.
# Loops over len(x) are not unrolled, which it would do instead.


@kernel
def _extreme(x: Blocks) -> np.float32:
    """The element farthest from zero, the first of equals; +0 if all are zero."""
    above, below = _above(x), _below(x)
    extreme = float_of(np.int32(max(above, below) | (_SIGN if below > above else np.int32(0))))
    return _first_as_far(x, above) if above == below and above else extreme


@kernel
def _first_as_far(x: Blocks, magnitude: np.int32) -> np.float32:
    for j in range(len(x)):
        if np.int32(bits(x[j]) & _MAGNITUDE) == magnitude:
            return x[j]
    return ZERO


# Each a loop of its own: of both in one the compiler makes no vector instructions.


@kernel
def _above(x: Blocks) -> np.int32:
    """Bits of the largest element, or 0 if none is above zero."""
    largest = np.int32(0)
    for j in range(len(x)):
        largest = max(largest, bits(x[j]))
    return largest


@kernel
def _below(x: Blocks) -> np.int32:
    """Bits of the least element without its sign, or 0 if none is below zero."""
    largest = np.int32(0)
    for j in range(len(x)):
        largest = max(largest, np.int32(bits(x[j]) ^ _SIGN))
    return largest


@kernel
def _range(x: Blocks) -> tuple[np.float32, np.float32]:
    """Least and largest element; of zeros of both signs the first."""
    low = high = ordered(bits(x[0]))
    for j in range(len(x)):
        word = ordered(bits(x[j]))
        low, high = min(low, word), max(high, word)
    least, largest = float_of(ordered(low)), float_of(ordered(high))
    if least == ZERO:
        j = 0
        while x[j] != ZERO:
            j += 1
        least = x[j]
        largest = least if largest == ZERO else largest
    return least, largest


@kernel
def _pack(
    x: Blocks, base: np.float32, inverse: np.float32, middle: np.float32, n: int, codes: Records, words: Words, out: Records
) -> None:  # fmt: skip
    """Levels trunc((x - base) · inverse + middle), up to 2n - 1, as bytes; codes [32], and words [4] of the
    same bytes, are scratch.

    Fifth bits, if n is 16, come first, as a 32-bit word; then the low four, of elements j and 16 + j in byte j.
    """
    if n == 16:
        for j in range(len(codes)):
            codes[j] = np.uint8(min(np.int32(31), np.int32((x[j] - base) * inverse + middle)))
        for k in range(4):
            out[k] = np.uint8((((words[k] >> np.uint64(4)) & _ONES) * _GATHER) >> np.uint64(56))
        for k in range(2):
            nibbles = (words[k] & _NIBBLES) | ((words[k + 2] & _NIBBLES) << np.uint64(4))
            for j in range(8):
                out[4 + 8 * k + j] = np.uint8(nibbles >> np.uint64(8 * j))
        return
    for j in range(16):
        first = min(np.int32(15), np.int32((x[j] - base) * inverse + middle))
        second = min(np.int32(15), np.int32((x[16 + j] - base) * inverse + middle))
        out[j] = np.uint8((first & 15) | ((second & 15) << 4))


@kernel
def _search_blocks(blocks: Blocks, importance: Blocks, n: int, is_ranged: bool, out: Records) -> None:
    x, w, steps = empty_lanes(32, LANES), empty_lanes(32, LANES), empty_lanes(32, LANES)
    found, spread = np.empty((4, LANES), np.float32), _mean_squares(blocks, len(importance))
    of_block, codes, at = np.empty(32, np.float32), np.empty(32, np.uint8), 4 if is_ranged else 2
    words = codes.view(np.uint64)
    for start in range(0, len(blocks), LANES):
        n_lanes = min(LANES, len(blocks) - start)
        load(blocks, start, x)
        load_importance(importance, start, w)
        for i in range(n_lanes):
            for j in range(32):
                w[j, i] *= np.sqrt(spread[(start + i) // len(importance)] + x[j, i] * x[j, i])
        if is_ranged:
            search_ranged(x, w, 2 * n - 1, -0.9, 0.05, 36, False, found)
            _ranged_steps(x, found, 2 * n - 1, steps)
        else:
            search_signed(x, w, n, found)
            found_levels(x, found, n, steps)
        for i in range(n_lanes):
            _put_half(found[SCALE, i], out[start + i], 0)
            if is_ranged:
                _put_half(-found[MINIMUM, i], out[start + i], 2)
            for j in range(32):
                of_block[j] = steps[j, i]
            _pack(of_block, ZERO, ONE, ZERO if is_ranged else np.float32(n), n, codes, words, out[start + i, at:])


@kernel
def _ranged_steps(x: Lanes, found: Lanes, top: int, steps: Lanes) -> None:
    for j in range(32):
        for i in range(LANES):
            steps[j, i] = np.float32(level(found[INVERSE, i] * (x[j, i] - found[BASE, i]), np.int32(0), np.int32(top)))


@kernel
def _mean_squares(blocks: Blocks, row_blocks: int) -> Lanes:
    """The mean square of each row."""
    spread = np.empty(len(blocks) // row_blocks, np.float32)
    for row in range(len(spread)):
        total = ZERO
        for b in range(row * row_blocks, (row + 1) * row_blocks):
            for j in range(32):
                total += blocks[b, j] * blocks[b, j]
        spread[row] = total / np.float32(32 * row_blocks)
    return spread
