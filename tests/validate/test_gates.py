"""What a gate says, and which failure it stands for."""

from __future__ import annotations

import math

import pytest
from lfm_convert.validate.gates import Failure, Part, at_least, at_most, failure_of, part_verdicts, verdict


def test_a_value_at_its_limit_passes() -> None:
    assert at_most("kld", 0.1, 0.1).passed and not at_most("kld", math.nextafter(0.1, 1), 0.1).passed
    assert at_least("top1", 0.9, 0.9).passed and not at_least("top1", math.nextafter(0.9, 0), 0.9).passed


def test_nan_passes_no_gate() -> None:
    assert not at_most("kld", math.nan, 1.0).passed
    assert not at_least("top1", math.nan, 0.0).passed


def test_no_gates_prove_nothing() -> None:
    assert verdict([]) == "fail"


@pytest.mark.parametrize(
    ("parts", "failure"),
    [
        ([], None),
        ([Part.QUALITY], Failure.OVER),
        ([Part.QUALITY, Part.FORMAT], Failure.WORSE),
        *([[Part.FORMAT, part], Failure.BROKEN] for part in (Part.TOKENIZER, Part.WEIGHTS, Part.EXECUTION, Part.CACHE)),
    ],
)
def test_the_gravest_failure_is_the_artifacts(parts: list[Part], failure: Failure | None) -> None:
    gates = [at_most("sound", 0, 1, Part.EXECUTION), *(at_most("bad", 1, 0, part) for part in parts)]
    assert failure_of(gates) is failure


def test_each_part_has_a_verdict_of_its_own() -> None:
    gates = [at_most("a", 0, 1, Part.WEIGHTS), at_most("b", 2, 1, Part.CACHE), at_most("c", 0, 1, Part.CACHE)]
    assert part_verdicts(gates) == {"weights": "pass", "cache": "fail"}
    assert gates[1].sentence == "b is 2, limit at most 1"
