from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from lfm_convert.convert.errors import UsageError
from lfm_convert.validate.gates import LIMITS, Limits, judge, limits_of, verdict
from lfm_convert.validate.metrics import Metrics

PERFECT = Metrics(
    n_prompts=2, n_positions=200, finite=True, kld_mean=0.0, kld_se=0.0, kld_median=0.0, kld_p99=0.0, kld_p999=0.0,
    kld_max=0.0, same_top1=1.0, same_top1_se=0.0, top5_overlap=1.0, ppl_ratio=1.0, ppl_ratio_se=0.0, prob_change_mean=0.0,
    prob_change_rms=0.0, max_abs_logit=0.0, worst=(),
)  # fmt: skip
CLASSES = ("f32", "f16", "q8", "q6", "q5", "q4")


@pytest.mark.parametrize("key", LIMITS)
def test_a_perfect_artifact_passes_every_class(key: tuple[str, bool]) -> None:
    gates = judge(PERFECT, key[0], is_moe=key[1])
    assert verdict(gates) == "pass"
    assert {gate.name for gate in gates} >= {"finite", "kld_mean", "kld_p999", "same_top1", "ppl_change"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kld_mean": 1.1e-5}, "kld_mean"),
        ({"kld_p999": 2e-3}, "kld_p999"),
        ({"same_top1": 0.9999}, "same_top1"),
        ({"ppl_ratio": 1.001}, "ppl_change"),
        ({"ppl_ratio": 0.999}, "ppl_change"),
        ({"max_abs_logit": 1.1e-3}, "max_abs_logit"),
        ({"kld_mean": math.nan}, "kld_mean"),
        ({"ppl_ratio": math.nan}, "ppl_change"),
        ({"finite": False}, "finite"),
    ],
)
def test_each_gate_can_fail(change: dict[str, float], name: str) -> None:
    gates = judge(replace(PERFECT, **change), "f32", is_moe=False)
    assert [gate.name for gate in gates if not gate.passed] == [name]
    assert verdict(gates) == "fail"


def test_a_value_at_its_limit_passes() -> None:
    limit = limits_of("q4", is_moe=False).kld_mean
    assert verdict(judge(replace(PERFECT, kld_mean=limit), "q4", is_moe=False)) == "pass"
    assert verdict(judge(replace(PERFECT, kld_mean=math.nextafter(limit, 1)), "q4", is_moe=False)) == "fail"


def test_no_gates_prove_nothing() -> None:
    assert verdict([]) == "fail"


def test_unknown_class_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'q2'.*f32, f16, q8"):
        limits_of("q2", is_moe=False)


def _no_looser(tight: Limits, loose: Limits) -> bool:
    return (
        tight.kld_mean <= loose.kld_mean
        and tight.kld_p999 <= loose.kld_p999
        and tight.ppl_change <= loose.ppl_change
        and tight.cache_kld <= loose.cache_kld
        and tight.weight_rms <= loose.weight_rms
        and tight.same_top1 >= loose.same_top1
    )


@pytest.mark.parametrize("is_moe", [False, True])
def test_fewer_bits_are_never_held_to_more(is_moe: bool) -> None:
    chain = [limits_of(name, is_moe=is_moe) for name in CLASSES]
    assert all(_no_looser(a, b) for a, b in pairwise(chain))


@pytest.mark.parametrize("name", CLASSES)
def test_a_mixture_is_never_held_to_more_than_dense(name: str) -> None:
    assert _no_looser(limits_of(name, is_moe=False), limits_of(name, is_moe=True))


def test_the_documented_table_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "validation.md").read_text(encoding="utf-8")
    for (name, is_moe), limits in LIMITS.items():
        kind = "MoE" if is_moe else "dense"
        numbers = f"{limits.kld_mean:g} | {limits.kld_p999:g} | {limits.same_top1:.0%} | {limits.ppl_change:.2%}"
        logit = "–" if limits.max_abs_logit is None else f"{limits.max_abs_logit:g}"
        assert (
            f"| {name} {kind} | {numbers} | {logit} | {limits.cache_kld:g} | {limits.weight_rms:g} | {limits.source} |"
            in page
        )
