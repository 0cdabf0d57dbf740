"""The whole validator, with a runtime that can be broken at will; each artifact in a real worker process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.errors import ExitCode, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.progress import Progress
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.budgets import Budgets
from lfm_convert.validate.gates import Failure
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from lfm_convert.validate.results import ArtifactResult, Fit, Report, Verdict
from lfm_convert.validate.selection import N_GREEDY_TOKENS
from support.fake_target import make_artifact

Run = Callable[..., Report]
# Calls of a runtime before the probes: of seven prompts, and of the steps by which four of them go on.
N_BEFORE = 7 + 4 * (N_GREEDY_TOKENS - 1)


@pytest.fixture
def run(dense_graph: WeightGraph, prompts: tuple[Prompt, ...], fake_runtime: str) -> Run:
    def run(*artifacts: Artifact, **options: Any) -> Report:
        options = {"prompts": prompts, "threads": 1, "find_target": fake_runtime, **options}
        return validate(artifacts, dense_graph, **options)

    return run


@pytest.fixture
def check(run: Run, tiny_dense: Path, tmp_path: Path) -> Callable[..., ArtifactResult]:
    """The result of one artifact with a fault."""

    def check(*, class_name: str = "f32", options: dict[str, Any] | None = None, **fault: Any) -> ArtifactResult:
        return run(make_artifact(tmp_path, tiny_dense, class_name=class_name, **fault), **(options or {})).results[0]

    return check


Check = Callable[..., ArtifactResult]


def test_the_same_weights_pass(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = run(make_artifact(tmp_path, tiny_dense), progress=Progress(note=said.append))
    result = report.results[0]
    assert (result.verdict, result.message, result.backend) == (Verdict.PASS, "", "fake 1.0")
    assert result.seconds is not None and 0 < result.seconds < 300
    assert result.metrics is not None and result.metrics.same_top1 == 1 and result.metrics.n_positions == 169
    assert result.cache is not None and all(probe.max_abs < 1e-4 for probe in result.cache.probes)
    assert result.greedy is not None and (result.greedy.n_exact, result.greedy.n_prompts) == (4, 4)
    assert report.exit_code is ExitCode.OK
    assert said == ["running the checkpoint itself on 7 prompts", "running model.json"]


def test_a_mixture_of_experts_passes(
    moe_graph: WeightGraph, tiny_moe: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path, tiny_moe)
    report = validate([artifact], moe_graph, prompts=prompts, threads=1, find_target=fake_runtime)
    assert report.results[0].verdict is Verdict.PASS


@pytest.mark.parametrize("class_name", ["f32", "q8", "q4"])
def test_two_swapped_weights_fail_every_class(check: Check, class_name: str) -> None:
    result = check(swap=True, class_name=class_name)
    assert (result.verdict, result.failure) == (Verdict.FAIL, Failure.BROKEN)
    assert "stored_row is" in result.message and "layer 0 ffn_" in result.message


def test_kernels_that_round_activations_are_held_to_less(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    report = run(
        make_artifact(tmp_path, tiny_dense, "strict", "f32", noise=1e-3),
        make_artifact(tmp_path, tiny_dense, "coarse", "q4", noise=1e-3, bug="four bits"),
    )
    assert [result.verdict.value for result in report.results] == ["fail", "pass"]
    assert report.exit_code is ExitCode.QUALITY


def test_a_convolution_that_forgets_is_caught_by_the_cache_check_alone(check: Check) -> None:
    result = check(forget_conv=True, class_name="q4")
    failed = [gate.name for gate in result.gates if not gate.passed]
    assert failed == ["cache_stepwise_kld", "cache_chunked_kld", "cache_interleaved_kld"]
    assert result.verdict is Verdict.FAIL


def test_a_reset_that_does_nothing_is_caught(check: Check) -> None:
    result = check(keep_state=True, class_name="q4")
    assert "cache_reset_kld" in [gate.name for gate in result.gates if not gate.passed]


@pytest.mark.parametrize("nan_after", [0, 3])
def test_a_nan_fails(check: Check, nan_after: int) -> None:
    result = check(nan_after=nan_after, class_name="q4")
    assert result.verdict is Verdict.FAIL
    assert "the logits hold NaN or infinity" in result.message
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["metrics"]["kld_mean"] is None


def test_a_nan_in_the_cache_probes_alone_fails(check: Check) -> None:
    result = check(nan_after=N_BEFORE + 1, class_name="q4")
    assert result.metrics is not None and result.metrics.finite
    assert result.verdict is Verdict.FAIL and "cache_stepwise_kld is nan" in result.message


def test_a_crash_is_one_row_of_its_own(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    report = run(
        make_artifact(tmp_path, tiny_dense, "broken", crash_at=3), make_artifact(tmp_path, tiny_dense, "sound")
    )
    broken, sound = report.results
    assert broken.verdict is Verdict.FAIL and broken.metrics is None
    assert broken.message == "the runtime crashed with SIGSEGV; it last said: weights are on fire"
    assert sound.verdict is Verdict.PASS
    assert report.exit_code is ExitCode.QUALITY


def test_a_crash_after_all_logits_fails_and_keeps_the_metrics(check: Check) -> None:
    result = check(crash_at=N_BEFORE + 1)
    assert result.verdict is Verdict.FAIL and "SIGSEGV" in result.message
    assert result.metrics is not None and result.metrics.same_top1 == 1


def test_a_hang_is_ended(check: Check) -> None:
    result = check(hang_at=2, options={"time_limit_s": 2.0})
    assert result.verdict is Verdict.FAIL
    assert result.message == "the runtime did not finish within 2 s and was ended"
    assert result.failure is Failure.LATE


def test_one_that_holds_too_much_is_ended(check: Check) -> None:
    result = check(eats=2 * 10**9, hang_at=3, options={"max_memory": 10**9})
    assert result.verdict is Verdict.FAIL
    assert result.message == "the runtime held more than 1.00 GB beside the files it maps and was ended"
    assert result.failure is Failure.TOO_LARGE
    assert result.held_bytes is not None and result.held_bytes > 10**9


def test_what_was_held_is_told(check: Check) -> None:
    """An artifact whose runtime takes 300 MB, and one that takes next to nothing."""
    much, little = (check(eats=n, hang_at=None) for n in (300 * 10**6, 0))
    assert much.held_bytes is not None and little.held_bytes is not None
    assert much.held_bytes - little.held_bytes == pytest.approx(300 * 10**6, rel=0.2)
    assert much.verdict is Verdict.PASS


def test_an_exception_is_the_message(check: Check) -> None:
    result = check(raise_at=2)
    assert (result.verdict, result.message) == (Verdict.FAIL, "RuntimeError: no kernel for this row")
    assert result.backend == "fake 1.0"


def test_another_vocabulary_is_not_compared(check: Check) -> None:
    result = check(wide=1, class_name="q4")
    assert result.verdict is Verdict.FAIL and result.metrics is None
    assert "logits of shape [1, 513] for 1 tokens: expected [1, 512]" in result.message


def test_a_missing_runtime_is_skipped_and_never_passes(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    absent = make_artifact(tmp_path, tiny_dense, "absent", absent=True)
    report = run(absent)
    assert report.results[0].verdict is Verdict.SKIPPED
    assert "pip install fake" in report.results[0].message
    assert report.exit_code is ExitCode.MISSING_BACKEND
    assert run(absent, make_artifact(tmp_path, tiny_dense)).exit_code is ExitCode.OK


def test_a_missing_file_fails(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, tiny_dense)
    artifact.path.unlink()
    result = run(artifact, budgets=Budgets(max_size=1)).results[0]
    assert "cannot be read" in result.message and result.fit is Fit.FREE


def test_what_cannot_be_read_still_has_a_size(run: Run, tmp_path: Path) -> None:
    result = run(make_artifact(tmp_path, tmp_path / "nowhere"), budgets=Budgets(max_size=0)).results[0]
    assert (result.verdict, result.fit) == (Verdict.FAIL, Fit.OVER)


def test_a_budget_fails_with_its_own_code(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, tiny_dense)
    exact = run(artifact, budgets=Budgets(max_size=artifact.size_bytes))
    assert (exact.results[0].verdict, exact.exit_code) == (Verdict.PASS, ExitCode.OK)
    over = run(artifact, budgets=Budgets(max_size=artifact.size_bytes - 1))
    assert (over.results[0].verdict, over.exit_code) == (Verdict.PASS, ExitCode.BUDGET)
    assert over.results[0].metrics is not None and over.results[0].fit is Fit.OVER
    assert over.results[0].message == "" and "over the budget" in over.results[0].sentence


def test_quality_is_worse_than_budget(check: Check) -> None:
    result = check(swap=True, options={"budgets": Budgets(max_size=1)})
    assert (result.verdict, result.fit) == (Verdict.FAIL, Fit.OVER)
    assert "over the budget" in result.sentence and "stored_row" in result.message


def test_json_has_what_manifests_keep(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    data = json.loads(json.dumps(run(make_artifact(tmp_path, tiny_dense)).to_json(), allow_nan=False))
    row = data["artifacts"][0]
    assert row.keys() >= {"path", "target", "quant", "backend", "verdict", "size_bytes", "budgets", "metrics"}
    assert row["metrics"].keys() >= {
        "kld_mean", "kld_se", "kld_p99", "kld_max", "same_top1", "top5_overlap", "ppl_ratio", "max_abs_logit",
    }  # fmt: skip
    assert data["environment"].keys() == {"python", "platform", "cpu", "threads", "versions"}


def test_json_keeps_its_published_schema(run: Run, tiny_dense: Path, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    artifacts = [make_artifact(tmp_path, tiny_dense, n, **f) for n, f in (("ok", {}), ("bad", {"swap": True}))]
    data = run(*artifacts, make_artifact(tmp_path, tiny_dense, "absent", absent=True)).to_json()
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(data, allow_nan=False)))
    assert data["artifacts"][0].keys() == schema["properties"]["artifacts"]["items"]["properties"].keys()


def test_nothing_to_validate_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="no artifact"):
        run()
