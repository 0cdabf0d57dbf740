from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.validate.compare import compare_results, mcnemar
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from support.fake_target import make_artifact


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 2**10)
    assert mcnemar(400, 600) == pytest.approx(2.7e-10, rel=0.05)


def test_the_further_artifact_is_named(
    dense_graph: WeightGraph, tiny_dense: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    near, far = (make_artifact(tmp_path, tiny_dense, n, "q4", noise=x) for n, x in (("near", 0.05), ("far", 0.5)))
    report = validate([near, far], dense_graph, prompts=prompts, threads=1, find_target=fake_runtime)
    found = compare_results(*report.results)
    assert found.second_is_worse and found.sentence == "far.json is further from the checkpoint than near.json"
    assert found.only_first > found.only_second and found.p_value < 0.01 and found.n_positions == 169
    assert found.to_json()["kld_difference"] == found.difference and "measure" not in found.to_json()
    back = compare_results(*reversed(report.results))
    assert not back.second_is_worse and back.difference == -found.difference
    same = compare_results(report.results[0], report.results[0])
    assert not same.second_is_worse and "cannot be told apart" in same.sentence


def test_what_was_not_run_cannot_be_compared(
    dense_graph: WeightGraph, tiny_dense: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    artifacts = [make_artifact(tmp_path, tiny_dense, "sound"), make_artifact(tmp_path, tiny_dense, "gone", absent=True)]
    report = validate(artifacts, dense_graph, prompts=prompts, threads=1, find_target=fake_runtime)
    with pytest.raises(InputError, match=r"gone\.json: nothing to compare"):
        compare_results(*report.results)


def test_one_prompt_is_no_comparison(
    dense_graph: WeightGraph, tiny_dense: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    long = Prompt(id="long", ids=tuple(i for prompt in prompts for i in prompt.ids))
    artifacts = [make_artifact(tmp_path, tiny_dense, name) for name in ("a", "b")]
    report = validate(artifacts, dense_graph, prompts=(long,), threads=1, find_target=fake_runtime)
    with pytest.raises(UsageError, match="two or more"):
        compare_results(*report.results)
