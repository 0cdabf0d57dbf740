"""Core ML's formats: bytes by hand, error bounds, searches against what is plainest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.graph import Weight
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import DeclaredTensor
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.quantize.policies.coreml import POLICIES
from lfm_convert.quantize.policy import find_policy

NAMES = ("coreml_int8", "coreml_int4", "coreml_pal4")


def test_bytes_by_hand() -> None:
    row = np.arange(-56, 200, dtype=np.float32)[None]
    data, scale, offset = get_encoding("coreml_int8").encode(row)
    assert (data[0].tolist(), scale.tolist(), offset.tolist()) == (list(range(256)), [[1.0]], [[56]])


def test_blocks_by_hand() -> None:
    """Two blocks a row: codes from 0 to 15 with a scale of one, and one of zeros."""
    row = np.zeros((1, 64), np.float32)
    row[0, :16] = np.arange(-4, 12)
    data, scale, offset = get_encoding("coreml_int4").encode(row)
    assert (scale[0, 0], offset[0, 0] & 15) == (1.0, 4)
    assert data.shape == (1, 32) and data[0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert get_encoding("coreml_int4").decode(data, scale, offset)[0].tolist() == row[0].tolist()


def test_tables_by_hand() -> None:
    rows = np.tile(np.arange(16, dtype=np.float32) - 3, (16, 2))
    indices, lut = get_encoding("coreml_pal4").encode(rows)
    assert lut[:, 0].tolist() == (np.arange(16) - 3).tolist()
    assert indices[5, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_the_smallest_numbers(name: str) -> None:
    rows = np.zeros((16, 64), np.float32)
    rows[3, 5], rows[4, 6] = 1e-45, -1e-45
    encoding = get_encoding(name)
    assert np.abs(encoding.decode(*encoding.encode(rows))).max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-2, 3))
def test_round_trip(name: str, seed: int, exponent: int) -> None:
    """No row is further off than a grid from its least to its largest value leaves it; values are float16."""
    rows = np.random.default_rng(seed).standard_normal((16, 128)).astype(np.float32) * np.float32(10.0**exponent)
    encoding = get_encoding(name)
    parts = encoding.encode(rows)
    for part, declared in zip(parts, encoding.parts(128), strict=True):
        assert (part.dtype, part.shape) == (declared.dtype, (16, *declared.row_shape))
    decoded = encoding.decode(*parts)
    np.testing.assert_array_equal(decoded, decoded.astype(np.float16).astype(np.float32))
    levels = 255 if name == "coreml_int8" else 15
    assert np.sqrt(np.square(decoded - rows).mean()) < 0.6 * np.ptp(rows) / levels


@pytest.mark.parametrize("n_cols", [1, 15, 200, 255])
def test_rows_of_any_length_in_eight_bits(n_cols: int) -> None:
    """Also such as the search, which loads sixteen elements at a time, has to fill up."""
    rows = np.random.default_rng(n_cols).standard_normal((70, n_cols)).astype(np.float32)
    encoding = get_encoding("coreml_int8")
    found = encoding.decode(*encoding.encode(rows))
    step = (np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)) / 250
    assert (np.abs(found - rows) < 0.6 * step[:, None]).mean() > 0.95


def test_one_row_or_many_are_the_same() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for name in NAMES:
        encoding = get_encoding(name)
        whole = encoding.encode(rows)
        halves = [encoding.encode(each) for each in (rows[:16], rows[16:])]
        for i, part in enumerate(whole):
            np.testing.assert_array_equal(part, np.concatenate([each[i] for each in halves]))


def test_tables_are_as_good_as_k_means() -> None:
    """scikit-learn's, of which coremltools makes its palettes, with its own starts."""
    cluster = pytest.importorskip("sklearn.cluster")
    rows = np.random.default_rng(1).standard_t(4, (16, 512)).astype(np.float32)
    encoding = get_encoding("coreml_pal4")
    own = np.square(encoding.decode(*encoding.encode(rows)) - rows).sum()
    peer = cluster.KMeans(16, n_init=4, random_state=0).fit(rows.reshape(-1, 1)).inertia_
    assert own < 1.03 * peer


@pytest.mark.parametrize(
    ("quant", "shape", "used", "reason"),
    [
        ("int4", (64, 128), "coreml_int4", None),
        ("int4", (64, 96), "coreml_int8", "rows of 96 are not a multiple of 64"),
        ("int4-pal", (48, 96), "coreml_pal4", None),
        ("int4-pal", (40, 96), "coreml_int8", "40 rows are not a multiple of the 16"),
        ("int4-pal", (2, 40, 96), "coreml_int8", "40 rows are not a multiple of the 16"),
    ],
)
def test_fallbacks(quant: str, shape: tuple[int, ...], used: str, reason: str | None) -> None:
    role = Role.FFN_UP if len(shape) == 2 else Role.EXPERT_UP
    choice = find_policy(POLICIES, quant, target="coreml").choose(Weight(role, 0, DeclaredTensor("w", shape)))
    assert choice.encoding.name == used
    assert (choice.reason or "").startswith(reason or "") and (choice.reason is None) == (reason is None)
