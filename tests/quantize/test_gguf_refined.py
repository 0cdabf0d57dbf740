"""`--refine`: the same formats with scales of lower error, and never of higher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.errors import UsageError
from lfm_convert.quantize.encoding import encoding_names, get_encoding
from support.refusals import refused

NAMES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
# What of the error on normal weights is left, at most, in hundredths: without importance, with.
LEFT = {
    "Q4_0": (92, 97), "Q4_1": (82, 99), "Q5_0": (92, 96), "Q5_1": (82, 99), "Q8_0": (82, 70), "Q6_K": (89, 83),
    "Q5_K": (95, 95), "Q4_K": (98, 98), "Q3_K": (94, 96), "Q2_K": (82, 96), "IQ4_NL": (96, 93), "IQ4_XS": (96, 93),
    "MXFP4": (97, 96),
}  # fmt: skip


def block_errors(name: str, rows: Float32, importance: Float32 | None) -> tuple[np.ndarray, np.ndarray]:
    """The weighted squared error of every block, exact and refined; the format's reader decodes both."""
    exact = get_encoding(name)
    weights = np.ones(rows.shape[1]) if importance is None else importance.astype(np.float64)
    found = []
    for encoding in (exact, exact.refined()):
        off = exact.decode(*encoding.encode(rows, importance)).astype(np.float64) - rows
        found.append((off**2 * weights).reshape(-1, exact.block).sum(axis=1))
    return found[0], found[1]


def _outliers(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((8, 512)) * np.where(rng.random((8, 512)) < 0.01, 40, 1)


CASES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "weights": lambda rng: rng.standard_normal((8, 512)) * 0.02,
    "heavy tails": lambda rng: rng.standard_t(2, (8, 512)) * 0.02,
    "outliers": _outliers,
    "one outlier a block": lambda rng: rng.standard_normal((8, 512)) * np.where(np.arange(512) % 256 == 7, 1000, 1),
    "zeros of both signs": lambda rng: np.where(rng.random((8, 512)) < 0.5, 0.0, -0.0),
    "sparse": lambda rng: rng.standard_normal((8, 512)) * (rng.random((8, 512)) < 0.03),
    "empty runs": lambda rng: rng.standard_normal((8, 512)) * np.repeat(rng.random((8, 32)) < 0.5, 16, axis=1),
    "one value": lambda rng: np.full((2, 512), -0.3),
    "nearly constant": lambda rng: 5 + rng.standard_normal((8, 512)) * 1e-6,
    "positive": lambda rng: np.abs(rng.standard_normal((8, 512))) + 1,
    "integers": lambda rng: rng.integers(-16, 17, (8, 512)),
    "all magnitudes": lambda rng: rng.standard_normal((8, 512)) * 10.0 ** rng.integers(-20, 4, (8, 512)),
    "subnormal": lambda rng: rng.standard_normal((8, 512)) * 1e-40,
    "large": lambda rng: rng.standard_normal((8, 512)) * 1e4,
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_block_is_worse(name: str, weighted: bool) -> None:
    for case, make in CASES.items():
        rng = np.random.default_rng(9)
        rows = np.ascontiguousarray(make(rng), np.float32)
        importance = (rng.random(512) ** 4).astype(np.float32) if weighted else None
        if importance is not None:
            importance[:64] = 0  # columns that are never used
        exact, better = block_errors(name, rows, importance)
        assert (better <= exact).all(), case


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 256), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(NAMES),
    st.none() | arrays(np.float32, 256, elements=st.floats(0, 100, width=32)),
)
def test_no_block_of_any_numbers_is_worse(rows: Float32, name: str, importance: Float32 | None) -> None:
    exact, better = block_errors(name, rows, importance)
    assert (better <= exact).all()


@pytest.mark.parametrize("name", NAMES)
def test_much_of_the_error_of_weights_goes(name: str) -> None:
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((32, 1024)) * 0.02).astype(np.float32)
    for importance, left in zip((None, (rng.random(1024) ** 4).astype(np.float32)), LEFT[name], strict=True):
        exact, better = block_errors(name, rows, importance)
        assert better.sum() <= exact.sum() * left / 100


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent(name: str) -> None:
    rows = np.random.default_rng(0).standard_normal((70, 256)).astype(np.float32)
    encoding = get_encoding(name).refined()
    apart = np.concatenate([encoding.encode(part)[0] for part in (rows[:1], rows[1:40], rows[40:])])
    assert np.array_equal(encoding.encode(rows)[0], apart)


def test_names_say_what_is_stored() -> None:
    q4, f16 = get_encoding("Q4_K"), get_encoding("F16")
    refined = q4.refined()
    assert (refined.name, refined.stored_name, q4.stored_name) == ("Q4_K_refined", "Q4_K", "Q4_K")
    assert (q4.is_refined, refined.is_refined, refined.refined() is refined) == (False, True, True)
    assert f16.refined() is f16 and f16.stored_name == "F16"
    assert refined.parts(512) == q4.parts(512)


def test_a_refined_encoding_has_a_name_but_no_entry() -> None:
    assert not any(name.endswith("_refined") for name in encoding_names())
    assert get_encoding("Q4_K_refined").is_refined
    assert get_encoding("affine4_g64_bf16_refined").is_refined
    for name in ("F16_refined", "Q4_K_refined_refined", "Q9_refined"):
        with refused("unknown encoding", name, error=UsageError):
            get_encoding(name)


@pytest.mark.parametrize("name", NAMES)
def test_encodings_say_whether_columns_are_weighed(name: str) -> None:
    """With importance and without, other bytes: of an exact encoder that says so, and of every refined one."""
    rows = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    importance = np.linspace(0, 4, 256, dtype=np.float32)
    for encoding in (get_encoding(name), get_encoding(name).refined()):
        plain, weighed = (encoding.encode(rows, each)[0] for each in (None, importance))
        assert (plain != weighed).any() == encoding.weighs_columns


@pytest.mark.peers
@pytest.mark.parametrize("name", NAMES)
def test_values_are_ggufs(name: str) -> None:
    """What another reader of the format makes of refined bytes."""
    gguf: Any = pytest.importorskip("gguf")
    rows = (np.random.default_rng(5).standard_normal((8, 512)) * 0.02).astype(np.float32)
    encoding = get_encoding(name).refined()
    (stored,) = encoding.encode(rows)
    theirs = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[name])
    assert np.array_equal(encoding.decode(stored), theirs)
