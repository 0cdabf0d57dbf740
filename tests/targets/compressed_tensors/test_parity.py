"""transformers agrees with the graph's forward with the artifact's decoded weights: whole, cached, batched."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import BackendError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from lfm_convert.targets.target import Artifact, get_target
from lfm_convert.validate.execution import Arithmetic, arithmetic_of
from lfm_convert.validate.floor import _FORWARDS
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import Verdict
from support.artifacts import write_artifact
from support.planted_check import few_prompts
from support.prompts import PROMPT

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(bool(get_target("compressed-tensors").missing()), reason="pip install compressed-tensors"),
]

TARGET = get_target("compressed-tensors")
EXACT = [("moe", "W4A16"), ("moe", "MXFP4A16"), ("dense", "W8A16"), ("dense", "W4A16-g32-asym"), ("lfm3", "W4A16")]


def _decoded(graph: WeightGraph, artifact: Artifact) -> np.ndarray:
    return Forward(graph.with_weights(TARGET.read(artifact))).prefill([PROMPT])[0][0]


@pytest.mark.parametrize(("model", "quant"), EXACT)
def test_logits_are_those_of_the_decoded_weights(model: str, quant: str, tmp_path: Path) -> None:
    """In one call, token by token, and in a batch beside a shorter prompt; experts are those that the router chose."""
    graph = open_graph(bundled.path(model))
    artifact = write_artifact(graph, TARGET, quant, tmp_path)
    expected = _decoded(graph, artifact)
    with closing(TARGET.run(artifact, threads=1)) as runner:
        np.testing.assert_allclose(runner.logits(PROMPT), expected, rtol=0, atol=1e-3)
        runner.reset()
        steps = [runner.extend(PROMPT[:3]), *(runner.extend([token]) for token in PROMPT[3:])]
        np.testing.assert_allclose(np.concatenate(steps), expected, rtol=0, atol=1e-3)
        short, whole = runner.batch([PROMPT[:5], PROMPT], "left")
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(short, expected[:5], rtol=0, atol=1e-3)
        chosen = runner.experts(PROMPT)
        assert runner.stops() == {"transformers": [7]}
    assert (chosen is None) == (model != "moe")
    if chosen is not None:
        forward = Forward(graph.with_weights(TARGET.read(artifact)))
        forward.prefill([PROMPT])
        for layer, experts in chosen.items():
            np.testing.assert_array_equal(np.sort(experts), np.sort(forward.routings[layer].experts))


def test_swapped_weights_are_seen(tmp_path: Path) -> None:
    """Negative control: the comparison fails when w1 and w3 of one layer change places."""
    graph = open_graph(bundled.path("dense"))
    gate, up = (graph.layers[2][role] for role in (Role.FFN_GATE, Role.FFN_UP))
    swapped = graph.with_weights({(Role.FFN_GATE, 2): up, (Role.FFN_UP, 2): gate})
    artifact = write_artifact(swapped, TARGET, "W8A16", tmp_path / "swapped")
    straight = write_artifact(graph, TARGET, "W8A16", tmp_path / "straight")
    with closing(TARGET.run(artifact, threads=1)) as runner:
        assert np.abs(runner.logits(PROMPT) - _decoded(graph, straight)).max() > 0.1


@pytest.mark.parametrize("quant", ["W4A16-asym", "W8A8", "FP8_BLOCK", "NVFP4A16"])
def test_experts_that_transformers_does_not_decode_are_not_run(quant: str, tmp_path: Path) -> None:
    artifact = write_artifact(open_graph(bundled.path("moe")), TARGET, quant, tmp_path)
    with pytest.raises(BackendError, match=r"not run here: transformers 5\.23 does not decode experts"):
        TARGET.run(artifact, threads=1)


def test_zero_points_of_several_schemes_are_not_run(tmp_path: Path) -> None:
    artifact = write_artifact(open_graph(bundled.path("lfm3")), TARGET, "W4A16-asym", tmp_path)
    with pytest.raises(BackendError, match="groups of several sizes"):
        TARGET.run(artifact, threads=1)


@pytest.mark.parametrize(
    ("quant", "arithmetic"),
    [
        ("W4A16", Arithmetic.FLOAT32),
        ("W8A8", Arithmetic.INT8),
        ("FP8", Arithmetic.FLOAT8),
        ("FP8_BLOCK", Arithmetic.FLOAT8),
        ("MXFP4", Arithmetic.FLOAT4),
    ],
)
def test_rounding_of_activations_is_modelled(quant: str, arithmetic: Arithmetic, tmp_path: Path) -> None:
    """What the floor's rounding of activations moves is what transformers' moves, in size: no wider limit is needed."""
    graph = open_graph(bundled.path("dense"))
    artifact = write_artifact(graph, TARGET, quant, tmp_path)
    assert arithmetic_of(TARGET, artifact) is arithmetic
    if arithmetic is Arithmetic.FLOAT32:
        return
    own = graph.with_weights(TARGET.read(artifact))
    with closing(TARGET.run(artifact, threads=1)) as runner:
        found = runner.logits(PROMPT)
    exact, rounded = (run.prefill([PROMPT])[0][0] for run in (Forward(own), _FORWARDS[arithmetic][1](own)))
    assert 0.7 < np.abs(rounded - exact).mean() / np.abs(found - exact).mean() < 1.4


@pytest.mark.parametrize(
    ("model", "quant", "verdict"), [("moe", "W4A16", Verdict.PASS), ("moe", "W8A8", Verdict.SKIPPED)]
)
def test_the_gate(model: str, quant: str, verdict: Verdict, tmp_path: Path) -> None:
    graph = open_graph(bundled.path(model))
    artifact = write_artifact(graph, TARGET, quant, tmp_path)
    (result,) = validate([artifact], graph, prompts=few_prompts(), threads=1).results
    assert result.verdict is verdict, result.message
    assert verdict is Verdict.PASS or "does not decode experts" in result.message
