"""Artifacts that hold fewer positions than prompts have."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.pipeline import convert, validate
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.progress import Progress
from lfm_convert.targets.target import Artifact, get_target
from lfm_convert.validate.contexts import by_context
from lfm_convert.validate.jobs import FIND_TARGET
from lfm_convert.validate.prompts import N_GREEDY_TOKENS, EncodedPrompt, fit_context
from lfm_convert.validate.results import Verdict
from support.artifacts import write_artifact
from support.family_configs import small
from support.family_models import make_model
from support.refusals import refused


def prompts(*lengths: int) -> tuple[EncodedPrompt, ...]:
    return tuple(EncodedPrompt(f"p{i}", tuple(range(n))) for i, n in enumerate(lengths))


def test_prompts_leave_room_for_what_is_said() -> None:
    found = fit_context(prompts(20, 200, 90), 128, holder="m")
    assert [len(each.token_ids) for each in found] == [20, 128 - N_GREEDY_TOKENS, 90]
    assert [each.is_cut for each in found] == [False, True, False]


def test_scored_positions_end_with_the_prompt() -> None:
    (found,) = fit_context((EncodedPrompt("t", tuple(range(512)), scored=(100, 511)),), 400, holder="m")
    assert found.scored == (100, 400 - N_GREEDY_TOKENS)


@pytest.mark.parametrize(("context", "message"), [(63, "expected at least 64"), (130, "score 98 positions")])
def test_too_few_positions_are_refused(context: int, message: str) -> None:
    with refused(message, error=UsageError):
        fit_context(prompts(200), context, holder="m")


def test_a_verdict_does_not_depend_on_the_artifacts_beside_it(dense_graph: WeightGraph) -> None:
    artifacts = [Artifact(Path(f"{n}.gguf"), Path(), "gguf", "F32", "f32", ()) for n in "ab"]
    short = Artifact(Path("gone.pte"), Path(), "executorch", "fp32", "f32", ())  # which whoever runs it says
    notes: list[str] = []
    groups = list(by_context([*artifacts, short], prompts(200), dense_graph.config, FIND_TARGET, note=notes.append))
    assert groups == [(prompts(200), [*artifacts, short])] and not notes


def test_a_package_of_few_positions_passes(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    notes: list[str] = []
    convert(
        "bundled:dense", target="coreml", quant="int8", options={"context": 128}, out=tmp_path, validate_after=False
    )
    progress = Progress(note=notes.append)
    (found,) = validate([tmp_path], reference="bundled:dense", suite="smoke", progress=progress).results
    assert found.verdict is Verdict.PASS, found.message
    assert any("prompts are cut, to fit a context of 128 tokens" in note for note in notes)


def test_a_model_of_few_positions_passes(tmp_path: Path) -> None:
    """ONNX Runtime refuses positions that a table of cosines has no row for."""
    model = make_model(tmp_path / "model", {**small("Qwen3-0.6B"), "max_position_embeddings": 200})
    graph = open_graph(model)
    artifact = write_artifact(graph, "onnx", "fp32", tmp_path / "out")
    assert get_target("onnx").longest_text(artifact, graph.config) == 200
    (found,) = validate([artifact.path], reference=str(model), suite="smoke").results
    assert found.verdict is Verdict.PASS, found.message
