"""Patterns of module names that a config brings."""

from __future__ import annotations

import time

import pytest
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.source.packed.patterns import fits


@pytest.mark.parametrize(
    ("pattern", "module", "found"),
    [
        (r".*self_attn\..*_proj$", "model.layers.2.self_attn.q_proj", True),
        (r"model\.layers\.\d+\.conv\.(in|out)_proj", "model.layers.2.conv.in_proj", True),
        (r"lm_head", "model.lm_head", False),
        (r"[*+(]+x", "++x", True),
        (r"(", "anything", False),
    ],
)
def test_what_a_pattern_fits(pattern: str, module: str, found: bool) -> None:
    assert fits(pattern, module) is found


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", ".*" * 9 + "$", "(?:a{1,9}){1,9}$", "a" * 501])
def test_one_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="expected at most 4 repetitions"):
        fits(pattern, "a" * 60 + "b")


def test_the_worst_that_is_taken_is_quick() -> None:
    start = time.monotonic()
    assert not fits(".*.*.*.*$b", "a" * 120)
    assert time.monotonic() - start < 20  # one of two would take for ever
