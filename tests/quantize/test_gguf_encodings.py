"""GGUF's block formats: bytes by hand, error bounds, and bits equal to ggml's own quantizers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.errors import InputError
from lfm_convert.quantize.encoding import get_encoding, ggml_types

BLOCK_BYTES = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q6_K": 210, "Q5_K": 176, "Q4_K": 144, "Q3_K": 110,
    "Q2_K": 84, "IQ4_NL": 18, "IQ4_XS": 136, "MXFP4": 17,
}  # fmt: skip
NAMES = tuple(BLOCK_BYTES)
SCALED = NAMES[:-1]  # by any float16, not by a power of two
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
DOUBLE_NIBBLES = "00112233445566778899aabbccddeeff"  # byte j holds level j twice

# One block each, chosen so that the scale is one: levels can be read off the values.
GOLDEN = {
    # -8 is the extreme: d = -8 / -8 = 1, level = x + 8
    "Q4_0": (list(range(-8, 8)) * 2, "003c" + DOUBLE_NIBBLES),
    # d = 15 / 15 = 1, m = 2, level = x - 2
    "Q4_1": (list(range(2, 18)) * 2, "003c" + "0040" + DOUBLE_NIBBLES),
    # d = -16 / -16 = 1, level = x + 16: the fifth bit is set for elements 16 to 31
    "Q5_0": (list(range(-16, 16)), "003c" + "0000ffff" + DOUBLE_NIBBLES),
    # d = 31 / 31 = 1, m = -1, level = x + 1
    "Q5_1": (list(range(-1, 31)), "003c" + "00bc" + "0000ffff" + DOUBLE_NIBBLES),
    # d = 127 / 127 = 1; halves round away from zero, what is just below does not
    "Q8_0": (
        [127, -127, 0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, *[0] * 20],
        "003c" + "7f81000001ff02fe03fd0000" + "00" * 20,
    ),
    # every run holds -32 and fits exactly: scale 1 = -128 * d with d = -1/128, level = x + 32;
    # levels 0, 4 … 56, 63 have low bits 0, 4, 8, c … and high bits 0, 0, 0, 0, 1 … 3
    "Q6_K": (
        [*range(-32, 28, 4), 31] * 16,
        "004488cc" * 3 + "004488ff" + "004488cc" * 3 + "004488ff"
        + ("004488cc" * 3 + "004488ff" + "004488cc" * 3 + "004488ff") * 3
        + ("00000000" + "55555555" + "aaaaaaaa" + "ffffffff") * 4
        + "80" * 16 + "00a0",
    ),
    # d = 1/63 as float16, every scale 63: 0x3f with the top bits of another 63, minima 0; level = x
    "Q5_K": (
        [*range(32)] * 8,
        "1024" + "0000" + "ff" * 4 + "00" * 4 + "0f" * 4 + "00" * 16 + "ff" * 16 + DOUBLE_NIBBLES * 8,
    ),
    "Q4_K": ([*range(16)] * 16, "1024" + "0000" + "ff" * 4 + "00" * 4 + "0f" * 4 + DOUBLE_NIBBLES * 8),
    # scale 1 = -32 * d with d = -1/32, stored scale 0; level = x + 4
    "Q3_K": ([*range(-4, 4)] * 32, "00000000ffffffff" * 4 + "0055aaff" * 16 + "00" * 12 + "00a8"),
    # d = 1/15 as float16, every scale 15, minima 0; level = x
    "Q2_K": ([*range(4)] * 64, "0f" * 16 + "0055aaff" * 16 + "442c" + "0000"),
    "IQ4_NL": (IQ4 * 2, "003c" + DOUBLE_NIBBLES),
    # scale 1 = -32 * d with d = -1/32, stored scale 0
    "IQ4_XS": (IQ4 * 16, "00a8" + "0000" + "00" * 4 + DOUBLE_NIBBLES * 8),
    # largest 6 = 1.5 * 2^2: e = 127 + 2 - 2; zero has no sign
    "MXFP4": ([*E2M1, *(-x for x in E2M1)] * 2, "7f" + "00112233445566770099aabbccddeeff"),
}  # fmt: skip


def encode(name: str, rows: Float32, importance: Float32 | None = None) -> np.ndarray:
    return get_encoding(name).encode(rows, importance)[0]


@pytest.mark.parametrize("name", NAMES)
def test_one_block_byte_for_byte(name: str) -> None:
    values, expected = GOLDEN[name]
    block = np.array([values], np.float32)
    stored = encode(name, block)
    assert stored.tobytes().hex() == expected
    assert np.array_equal(block, np.array([values], np.float32)), "the input was written to"
    assert np.abs(get_encoding(name).decode(stored) - block).max() <= 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_stay_zeros(name: str, zero: float) -> None:
    rows = np.full((2, 256), zero, np.float32)
    assert not get_encoding(name).decode(encode(name, rows)).any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", [name for name in SCALED if not name.startswith("IQ4")])  # whose table has no zero
def test_the_extreme_keeps_its_sign_and_size(name: str, sign: int) -> None:
    rows = np.zeros((1, 256), np.float32)
    rows[0, 37] = sign * 2.5
    decoded = get_encoding(name).decode(encode(name, rows))
    assert decoded[0, 37] == pytest.approx(sign * 2.5, rel=1e-3)
    assert np.abs(np.delete(decoded, 37)).max() < 2e-3  # zero, but for the rounding of a minimum


def test_of_equal_extremes_the_first_sets_the_scale() -> None:
    rows = np.zeros((2, 32), np.float32)
    rows[0, [3, 9]] = 8, -8
    rows[1, [3, 9]] = -8, 8
    scales = encode("Q4_0", rows)[:, :2].copy().view("<f2").ravel()
    assert scales.tolist() == [-1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_declares_what_it_writes(name: str) -> None:
    encoding = get_encoding(name)
    rows = np.ones((3, 512), np.float32)
    n_bytes = 512 // encoding.block * BLOCK_BYTES[name]
    assert encode(name, rows).shape == (3, n_bytes)
    assert encoding.row_nbytes(512) == n_bytes
    assert encode(name, rows[:0]).shape == (0, n_bytes)
    assert encoding.refusal(encoding.block + 16) is not None


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_beyond_float16_is_refused(name: str) -> None:
    for value in (3e38, -3e38):
        rows = np.zeros((1, 256), np.float32)
        rows[0, 5] = value
        with pytest.raises(InputError, match="wider encoding"):
            encode(name, rows)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 64), elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from(NAMES[:5]))
def test_error_is_at_most_half_a_step(rows: Float32, name: str) -> None:
    """One step at the top level of the formats that have one level less on that side."""
    error = np.abs(get_encoding(name).decode(encode(name, rows)) - rows).reshape(-1, 32)
    blocks = rows.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    span = blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)
    step = {"Q4_0": largest / 8, "Q5_0": largest / 16, "Q4_1": span / 15, "Q5_1": span / 31, "Q8_0": largest / 127}
    clipped = (np.abs(blocks) > largest * (1 - 1 / 16)) & (name in ("Q4_0", "Q5_0"))
    half_rounding = (largest + span) * 2**-10 + 127 * 2**-24
    assert (error <= step[name] * np.where(clipped, 1, 0.5) + half_rounding).all()


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (1, 256), elements=st.floats(-1e4, 1e4, width=32)))
def test_q6_k_error_is_within_the_coarsest_run(rows: Float32) -> None:
    """Scales of runs are in units of the largest over 128, so that small runs may lose up to half a unit."""
    error = np.abs(get_encoding("Q6_K").decode(encode("Q6_K", rows)) - rows)
    assert error.max() <= np.abs(rows).max() / 16 + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 256)).astype(np.float32)
    apart = np.concatenate([encode(name, rows[:1]), encode(name, rows[1:301]), encode(name, rows[301:])])
    assert np.array_equal(encode(name, rows), apart)


def _normal(scale: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.standard_normal((32, 1024)) * scale


CASES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "weights": _normal(0.02),
    "bfloat16": lambda rng: (rng.standard_normal((32, 1024)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(
        np.float32
    ),
    "zeros of both signs": lambda rng: np.where(rng.random((16, 1024)) < 0.5, 0.0, -0.0),
    "nearly constant": lambda rng: 5 + rng.standard_normal((32, 1024)) * 1e-6,
    "nearly constant, negative": lambda rng: rng.standard_normal((32, 1024)) * 1e-6 - 5,
    "positive and zeros": lambda rng: np.maximum(rng.standard_normal((32, 1024)), 0) * rng.choice([1, -0.0], (32, 1)),
    "integers": lambda rng: rng.integers(-16, 17, (32, 1024)),
    "halves": lambda rng: rng.integers(-254, 255, (32, 1024)) / 2,
    "equal extremes": lambda rng: rng.integers(-1, 2, (32, 1024)),
    "sparse": lambda rng: rng.standard_normal((32, 1024)) * (rng.random((32, 1024)) < 0.05),
    "one value": lambda rng: np.full((2, 1024), -0.3),
    "all magnitudes": lambda rng: rng.standard_normal((32, 1024)) * 10.0 ** rng.integers(-20, 4, (32, 1024)),
    "large": _normal(1e4),
    **{f"times 1e-{n}": _normal(10.0**-n) for n in (6, 7, 9, 15, 20, 37, 40, 44)},
}


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_bits_are_ggmls(name: str, weighted: bool) -> None:
    for case, make in CASES.items():
        rng = np.random.default_rng(3)
        rows = np.ascontiguousarray(make(rng), np.float32)
        importance = (rng.random(rows.shape[1]) ** 4).astype(np.float32) if weighted else None
        assert np.array_equal(encode(name, rows, importance), _ggml_encode(name, rows, importance)), case


@pytest.mark.parametrize(
    "name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"]
)
def test_importance_lowers_the_error_where_it_says(name: str) -> None:
    rows = np.random.default_rng(7).standard_normal((16, 512)).astype(np.float32)
    importance = np.tile(np.array([1000, 1], np.float32), 256)

    def error(stored: np.ndarray) -> float:
        return float(((get_encoding(name).decode(stored) - rows) ** 2 @ importance).sum())

    assert error(encode(name, rows, importance)) < error(encode(name, rows))


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_values_are_ggufs(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    rows = (np.random.default_rng(5).standard_normal((8, 512)) * 0.02).astype(np.float32)
    stored = encode(name, rows)
    theirs = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[name])
    assert np.array_equal(get_encoding(name).decode(stored), theirs)


def _ggml_encode(name: str, rows: Float32, importance: Float32 | None) -> np.ndarray:
    """The rows as `ggml_quantize_chunk` of the pinned llama.cpp encodes them."""
    pytest.importorskip("xllamacpp")
    from lfm_convert.targets.gguf.runner import load_library

    out = np.zeros((len(rows), get_encoding(name).row_nbytes(rows.shape[1])), np.uint8)
    quantize = load_library().ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p)
    weights = None if importance is None else importance.ctypes.data
    size = quantize(ggml_types()[name], rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
    assert size == out.nbytes
    return out
