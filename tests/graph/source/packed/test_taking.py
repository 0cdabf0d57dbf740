"""What counts as a number of rows, columns or elements in a config."""

from __future__ import annotations

import pytest
from lfm_convert.graph.source.packed.taking import is_count


@pytest.mark.parametrize("value", [-1.0, 0.0, 128.0, True, False, "128", None, 10**30, 1 << 40])
def test_what_is_no_count(value: object) -> None:
    assert not is_count(value, least=-1)


def test_counts() -> None:
    assert is_count(1) and is_count(128) and is_count(0, least=0) and is_count(-1, least=-1)
    assert not is_count(0) and not is_count(-1, least=0)
