"""Models that give vectors: their numbers by hand, and runtimes that make a mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.validate.baseline import hold_to_baseline, load_baseline, update_baseline
from lfm_convert.validate.compare import compare_results
from lfm_convert.validate.formats import write_markdown
from lfm_convert.validate.gates import Failure, Part
from lfm_convert.validate.kept_checkpoint import open_kept
from lfm_convert.validate.lines import Lines, hold_to_lines
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import EncodedPrompt, Prompt
from lfm_convert.validate.reference_cache import ReferenceCache
from lfm_convert.validate.report import write_html
from lfm_convert.validate.results import ArtifactResult, Held, Report, Verdict
from lfm_convert.validate.vectors import (
    exchanged,
    nearness,
    nearness_moved,
    score_vectors,
    summarize_vectors,
    vector_distances,
)
from support.encoders import make_encoder
from support.fake_target import make_artifact

# Bug -> (model, gate that fails or none, what the report says).
CAUGHT = {
    "causal attention": ("embedding", "execution_distance_p50", "a runtime where attention sees no later tokens"),
    "causal convolution": (
        "colbert",
        "execution_distance_p50",
        "a runtime where the short convolution sees no later tokens",
    ),
    "last token pooled": ("embedding", "execution_distance_p50", "a runtime where the vector is the last token's"),
    "projection missing": (
        "colbert",
        None,
        "gives vectors [1, 128]: expected [1, 32], so its pooling or its projection",
    ),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for kind in ("embedding", "colbert"):
        make_encoder(folder / kind, kind)
    return folder


def run(checkpoint: Path, prompts: tuple[Prompt, ...], find_target: str, folder: Path, **fault: object) -> Report:
    artifact = make_artifact(folder, checkpoint, class_name="f32", **fault)
    return validate([artifact], open_graph(checkpoint), prompts=prompts, threads=1, find_target=find_target)


def only(report: Report) -> ArtifactResult:
    (result,) = report.results
    return result


@pytest.mark.parametrize("kind", ["embedding", "colbert"])
def test_a_sound_runtime_passes(
    kind: str, encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    report = run(encoders / kind, prompts, fake_runtime, tmp_path)
    result = only(report)
    assert (result.verdict, result.message) == (Verdict.PASS, "")
    assert result.metrics is None and result.greedy is None and result.cache is None and result.stops is None
    assert result.vectors is not None and result.vectors_execution is not None
    assert result.vectors.cosine_min > 1 - 1e-6
    assert (result.vectors.ranks_mean, result.vectors.same_nearest) == (1.0, 1.0)
    assert result.vectors.n_vectors == (len(prompts) if kind == "embedding" else 169)
    assert {gate.part for gate in result.gates} == {Part.WEIGHTS, Part.EXECUTION, Part.FORMAT}
    write_html(report, tmp_path / "report.html")
    write_markdown(report, tmp_path / "report.md")
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "cos 1.000000" in text and "KLD" not in text.partition("</style>")[2] + (text if "md" in name else "")


@pytest.mark.parametrize("bug", CAUGHT)
def test_a_planted_bug_is_caught(
    bug: str, encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    kind, gate, said = CAUGHT[bug]
    result = only(run(encoders / kind, prompts, fake_runtime, tmp_path, bug=bug))
    assert (result.verdict, result.failure) == (Verdict.FAIL, Failure.BROKEN)
    assert said in result.message
    if gate is not None:
        assert gate in {each.name for each in result.gates if not each.passed}


def test_noise_fails_and_is_told_in_json(
    encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    report = run(encoders / "embedding", prompts, fake_runtime, tmp_path, noise=0.01)
    data = report.to_json()
    assert data["artifacts"][0]["verdict"] == "fail"
    assert data["artifacts"][0]["vectors"]["cosine_min"] < 0.999
    schema = json.loads((Path(__file__).parents[2] / "docs/report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(data, allow_nan=False)))


def test_distances_by_hand() -> None:
    right = np.array([[1, 0], [3, 4], [1, 1]], np.float32)
    found = np.array([[5, 0], [4, 3], [-2, -2]], np.float32)
    assert vector_distances(right, found) == pytest.approx([0, 1 - 24 / 25, 2])


def test_orders_by_hand() -> None:
    """Of four texts of one vector each, on a quarter of a circle; two of them exchange their places."""

    def at(degrees: float) -> np.ndarray:
        return np.array([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]], np.float32)

    right, found = (0, 10, 30, 70), (0, 30, 10, 70)
    scores = [
        score_vectors(EncodedPrompt(str(i), (1,)), at(a), at(b))
        for i, (a, b) in enumerate(zip(right, found, strict=True))
    ]
    metrics = summarize_vectors(scores)
    # Of the first: 1, 2, 3 became 2, 1, 3, an exchange of neighbours in an order of three.
    assert next(each for each in metrics.worst if each.prompt == "0").ranks == pytest.approx(0.5)
    assert metrics.cosine_min == pytest.approx(math.cos(math.radians(20)), abs=1e-6)
    # Beside each text one pair of three is exchanged; only beside the last by a lead of more than a tenth.
    assert exchanged(scores, tie=0)[0] == pytest.approx(1 / 3)
    assert exchanged(scores, tie=0.13) == (pytest.approx(1 / 12), "3")
    assert nearness_moved(scores) == pytest.approx(math.cos(math.radians(40)) - math.cos(math.radians(60)), abs=1e-6)
    assert metrics.same_nearest == 0  # each of the two took the other's place beside every text


def test_texts_of_many_vectors_are_as_near_as_each_token_to_its_nearest() -> None:
    x, y = np.eye(2, dtype=np.float32)
    texts = [np.stack([x, y]), x[None], y[None]]
    scores = [score_vectors(EncodedPrompt(str(i), (1,) * len(text)), text, text) for i, text in enumerate(texts)]
    assert nearness([score.reference for score in scores]).tolist() == [[1, 0.5, 0.5], [1, 1, 0], [1, 0, 1]]


def test_a_baseline_holds_vectors(
    encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    report = run(encoders / "embedding", prompts, fake_runtime, tmp_path)
    path = tmp_path / "baseline.json"
    update_baseline(path, report)
    held = only(hold_to_baseline(report, load_baseline(path), require=True))
    assert (held.verdict, held.baseline) == (Verdict.PASS, Held.HELD)
    stored = json.loads(path.read_text())
    for means in stored["entries"].values():
        means.update({prompt: (n, distance - 0.01) for prompt, (n, distance) in means.items()})
    path.write_text(json.dumps(stored))
    worse = only(hold_to_baseline(report, load_baseline(path)))
    assert (worse.verdict, [gate.name for gate in worse.gates if not gate.passed]) == (
        Verdict.FAIL,
        ["distance_over_baseline"],
    )


def test_lines_for_logits_are_not_silent(
    encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    report = run(encoders / "embedding", prompts, fake_runtime, tmp_path)
    assert "the model gives vectors: not judged" in only(hold_to_lines(report, Lines(max_kld=0.1))).message
    assert only(hold_to_lines(report, Lines())).message == ""
    assert only(hold_to_lines(report, Lines(min_cosine=0.999))).verdict is Verdict.PASS


def test_a_line_on_the_cosine_and_which_of_two_is_nearer(
    encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    folder = encoders / "embedding"
    near, far = (make_artifact(tmp_path, folder, name, "q4", noise=n) for name, n in (("near", 0.02), ("far", 0.5)))
    report = validate([near, far], open_graph(folder), prompts=prompts, threads=1, find_target=fake_runtime)
    first, second = report.results
    assert first.vectors is not None and second.vectors is not None
    between = (first.vectors.cosine_mean + second.vectors.cosine_mean) / 2
    held = hold_to_lines(report, Lines(min_cosine=between)).results
    assert [any(gate.name == "line_cosine" and not gate.passed for gate in each.gates) for each in held] == [
        False,
        True,
    ]
    found = compare_results(first, second)
    assert found.second_is_worse and (found.only_first, found.only_second) == (len(prompts), 0)
    assert found.difference == pytest.approx(first.vectors.cosine_mean - second.vectors.cosine_mean)
    assert found.to_json().keys() >= {"distance_difference", "distance_se"}
    assert "cannot be told apart" in compare_results(first, first).sentence


@pytest.mark.parametrize("kind", ["embedding", "colbert"])
def test_a_kept_run_stands_for_a_checkpoint_that_is_not_at_hand(
    kind: str, encoders: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    graph = open_graph(encoders / kind)
    artifact = make_artifact(tmp_path, encoders / kind, class_name="f32")
    cache = ReferenceCache(tmp_path / "kept", "0" * 64)
    options = {"prompts": prompts, "threads": 1, "find_target": fake_runtime, "kept": cache}
    first = only(validate([artifact], graph, **options))
    kept = cache.find_checkpoint()
    assert kept is not None
    again = only(validate([artifact], open_kept(kept), **options))
    assert (again.verdict, again.vectors) == (Verdict.PASS, first.vectors)
    assert set(again.not_judged) == {Part.WEIGHTS, Part.FORMAT}
