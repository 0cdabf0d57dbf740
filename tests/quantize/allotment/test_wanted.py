"""Names of quants whose encodings are allotted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.units import exact_size, parse_size
from lfm_convert.quantize.allotment.wanted import base_of, check_tuned, named, read_wanted


@pytest.mark.parametrize(
    ("given_as", "name", "word", "max_bytes", "base"),
    [
        ("auto-4.6GB", "auto-4.6GB", "auto-4.6GB", 4_600_000_000, "Q4_K_M"),
        ("AUTO-700mib", "auto-734003200B", "auto-734003200B", 700 << 20, "Q4_K_M"),
        ("Q6_K-tuned", "Q6_K-tuned", "Q6_K", None, "Q6_K"),
    ],
)
def test_what_names_ask_for(given_as: str, name: str, word: str, max_bytes: int | None, base: str) -> None:
    wanted = read_wanted(given_as)
    assert wanted is not None
    assert (wanted.name, wanted.word, wanted.max_bytes, base_of(given_as, "Q4_K_M")) == (name, word, max_bytes, base)


def test_other_names_ask_for_nothing() -> None:
    assert read_wanted("Q4_K_M") is None
    assert base_of("Q4_K_M", "Q8_0") == "Q4_K_M"


def test_options_beside_a_name() -> None:
    assert named("auto", max_bytes=2_000_000) == "auto-2MB"
    assert named("Q4_0", bits=True) == named("Q4_0-tuned", bits=True) == "Q4_0-tuned"
    assert named("Q4_0", max_bytes=5) == "Q4_0"
    with pytest.raises(UsageError, match="--max-size 4"):
        named("auto", bits=True)
    with pytest.raises(UsageError, match="in place of all"):
        named("all", bits=True)
    with pytest.raises(UsageError, match="--tune=bytes: expected bits"):
        check_tuned(["bytes"])


@given(n_bytes=st.integers(1, 10**13))
def test_sizes_in_names_are_exact(n_bytes: int) -> None:
    assert parse_size(exact_size(n_bytes)) == n_bytes
