"""compressed-tensors of every family: transformers runs what is stored, and it is read back as a source to the bit."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.target import get_target
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import Verdict
from support.artifacts import write_artifact
from support.family_models import make_model
from support.fitting_models import NAMES, PROMPT, fitting, some_slow
from support.planted_check import few_prompts

TARGET = get_target("compressed-tensors")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(TARGET.missing()), reason="pip install compressed-tensors"),
]
# Granite's older mixtures keep their experts in one tensor, which no scheme names.
STORED = [name for name in NAMES if name != "Granite-3.1-1B-A400M"]
MAX_DIFFERENCE = 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, fitting(name)) for name in STORED}


@pytest.mark.parametrize("quant", ["W4A16-g32", "MXFP4A16"])
@pytest.mark.parametrize("name", STORED)
def test_transformers_runs_what_is_stored(models: dict[str, Path], name: str, quant: str, tmp_path: Path) -> None:
    """In one call and in pieces; and opened as a source the folder has the same weights."""
    graph = open_graph(models[name])
    artifact = write_artifact(graph, TARGET, quant, tmp_path)
    decoded = TARGET.read(artifact)
    (expected,) = Forward(graph.with_weights(decoded)).prefill([PROMPT])[0]
    with closing(TARGET.run(artifact, threads=1)) as runner:
        np.testing.assert_allclose(runner.logits(PROMPT), expected, rtol=0, atol=MAX_DIFFERENCE)
        runner.reset()
        pieces = [runner.extend(PROMPT[:13]), runner.extend(PROMPT[13:14]), runner.extend(PROMPT[14:])]
    np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=MAX_DIFFERENCE)
    assert np.abs(expected).max() > 0.3
    for weight in open_graph(artifact.path.parent).weights():
        np.testing.assert_array_equal(weight.view.read(), decoded[weight.address].read())


@pytest.mark.parametrize("name", some_slow(STORED, quick={"Phi-4-mini"}))
def test_the_gate(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    graph = open_graph(models[name])
    artifact = write_artifact(graph, TARGET, "FP8", tmp_path)
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.PASS, result.message


def test_the_gate_sees_a_rope_without_its_factor(models: dict[str, Path], tmp_path: Path) -> None:
    graph = open_graph(models["Phi-4-mini"])
    artifact = write_artifact(graph, TARGET, "W4A16-g32", tmp_path)
    config = json.loads(artifact.path.read_text())
    config["max_position_embeddings"] = config["original_max_position_embeddings"]
    artifact.path.write_text(json.dumps(config))
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.FAIL
    assert "cosines and sines lack the rope's factor" in result.message
