"""MLX folders of every family: mlx_lm.convert's own arrays and config, run by mlx-lm as the reference runs what they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.mlx.recognise import recognise
from lfm_convert.targets.target import Artifact, get_target
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import Verdict
from support.artifacts import write_artifact
from support.family_models import make_model
from support.fitting_models import NAMES, PROMPT, fitting, some_slow
from support.mlx_arrays import assert_equal
from support.planted_check import few_prompts

pytestmark = pytest.mark.peers

TARGET = get_target("mlx")
MAX_DIFFERENCE = 1e-4
QUANTS: dict[str, dict[str, Any]] = {
    "bf16": {"quantize": False, "dtype": "bfloat16"},
    "4bit-g32": {"q_bits": 4, "q_group_size": 32},
    "8bit": {"q_bits": 8, "q_group_size": 64},
    "mxfp4": {"q_mode": "mxfp4"},
}
# What is written as mlx-lm reads it: the rope's own fields, and what is said of windows that no layer has.
_OWN_FIELDS = {"rope_scaling", "max_window_layers", "sliding_window"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, fitting(name)) for name in NAMES}


def decoded(graph: WeightGraph, artifact: Artifact) -> Forward:
    return Forward(TARGET.as_run(graph).with_weights(TARGET.read(artifact)))


def in_pieces(artifact: Artifact, cuts: Sequence[int]) -> np.ndarray:
    ends = list(zip((0, *cuts), (*cuts, len(PROMPT)), strict=True))
    with closing(TARGET.run(artifact, threads=1)) as runner:
        return np.concatenate([runner.extend(PROMPT[low:high]) for low, high in ends])


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_and_config_are_those_of_mlx_lm(models: dict[str, Path], name: str, quant: str, tmp_path: Path) -> None:
    import mlx_lm

    mlx_lm.convert(str(models[name]), str(tmp_path / "theirs"), **{"quantize": True, **QUANTS[quant]})
    artifact = write_artifact(open_graph(models[name]), "mlx", quant, tmp_path / "mine")
    assert_equal(tmp_path / "theirs", artifact.path.parent)
    theirs, mine = (json.loads(path.read_text()) for path in (tmp_path / "theirs/config.json", artifact.path))
    differing = {key for key, value in theirs.items() if mine.get(key) != value}
    for settings in (theirs.get("quantization", {}), mine.get("quantization", {})):
        for each in settings.values():
            each.pop("mode", None) if isinstance(each, dict) else None  # which is affine if nobody says it
    if differing & {"quantization"}:
        assert mine["quantization"] == theirs["quantization"]
    assert differing <= {"quantization", "quantization_config", *_OWN_FIELDS}


@pytest.mark.parametrize("quant", ["bf16", "4bit-g32"])
@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_runs_what_is_stored(models: dict[str, Path], name: str, quant: str, tmp_path: Path) -> None:
    """Whole, and in pieces that end within a window and behind it."""
    graph = open_graph(models[name])
    artifact = write_artifact(graph, "mlx", quant, tmp_path)
    (expected,) = decoded(graph, artifact).prefill([PROMPT])[0]
    for cuts in ((), (5, 20, 21)):
        np.testing.assert_allclose(in_pieces(artifact, cuts), expected, rtol=0, atol=MAX_DIFFERENCE)
    if quant != "bf16":  # which most models have as any checkpoint does
        (found,) = recognise(artifact.path.parent)
        assert found.quant == quant
    assert np.abs(expected).max() > 0.3


# A config that says less than the model: which part of it mlx-lm then has otherwise, as the report calls it.
FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rope": ("Llama-3.2-1B", {"rope_scaling": None}, "the rope is not the scaled one"),
    "rope factor": ("Phi-4-mini", {"max_position_embeddings": 4096}, "cosines and sines lack the rope's factor"),
    "no rope": ("SmolLM3-3B", {"no_rope_layers": [1, 1, 1, 1]}, ""),
    "branches": ("Granite-3.3-2B", {"residual_multiplier": 1.0}, "what branches add is not scaled"),
    "scores": ("Granite-3.1-1B-A400M", {"attention_multiplier": 0.25}, "scores are scaled by the head's size"),
    "embeddings": ("Granite-4.0-1B", {"embedding_multiplier": 1.0}, "embeddings are not scaled"),
    "windows": ("gemma-3-270m", {"sliding_window": 500}, "windows are not kept"),
    "experts": ("Qwen3-30B-A3B", {"norm_topk_prob": False}, "expert weights are normalised the other way"),
}


@pytest.mark.parametrize("name", some_slow(NAMES, quick={"gemma-3-4b", "Phi-4-mini"}))
def test_the_gate(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    graph = open_graph(models[name])
    artifact = write_artifact(graph, "mlx", "4bit-g32", tmp_path)
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.PASS, result.message


@pytest.mark.parametrize("fault", some_slow(FAULTS, quick={"branches", "rope factor"}))
def test_the_gate_sees_a_fault(models: dict[str, Path], fault: str, tmp_path: Path) -> None:
    name, fields, sentence = FAULTS[fault]
    graph = open_graph(models[name])
    artifact = write_artifact(graph, "mlx", "4bit-g32", tmp_path)
    config = json.loads(artifact.path.read_text())
    artifact.path.write_text(json.dumps(config | fields))
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.FAIL
    assert any(gate.name.startswith("execution") and not gate.passed for gate in result.gates)
    assert sentence in result.message


@pytest.mark.slow
def test_rounding_of_the_scale_of_embeddings_is_the_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights as they are stored the scale as it is, the root of 96, would be as far off as a fault."""
    graph = open_graph(make_model(tmp_path / "model", fitting("gemma-3-4b", hidden_size=96)))
    artifact = write_artifact(graph, "mlx", "4bit-g32", tmp_path / "out")
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.PASS, result.message
    monkeypatch.setattr(type(TARGET), "as_run", lambda target, graph: graph)
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is Verdict.FAIL
