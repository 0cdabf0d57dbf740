"""ONNX Runtime on every family: against the reference, in pieces and in batches, quantised, and with planted faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families.test_reference_peers import VARIANTS
from lfm_convert.graph.blocks import Activation, Attention, Block, Branch
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.graph.roles import Role
from lfm_convert.graph.rotary import default_rope
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.target import Runner, Target, get_target
from lfm_convert.validate.gates import Part
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import ArtifactResult, Verdict
from support.artifacts import write_artifact
from support.family_configs import small
from support.family_models import make_model
from support.fitting_models import some_slow
from support.planted_check import few_prompts

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4
# Longer than the small models' trained contexts, and with ends before and behind them.
PROMPT = np.random.default_rng(6).integers(8, 600, 100).tolist()
PIECES = (13, 40, 41, 80)

FAMILIES = (
    "Qwen3-0.6B", "Llama-3.2-1B", "SmolLM3-3B", "Granite-3.3-2B", "Granite-4.0-1B", "gemma-3-270m", "Phi-4-mini",
    "Qwen3-30B-A3B", "Granite-3.1-1B-A400M",
)  # fmt: skip
MIXTURES = FAMILIES[-2:]
# Of Phi with contexts that the validator's prompts do not leave: what a text is like that leaves them depends on its pieces.
_LONG = {"max_position_embeddings": 4096}
_LONGER = {"Phi-4-mini": {"sliding_window": None, "original_max_position_embeddings": 2048}}


def model(folder: Path, name: str, **fields: Any) -> WeightGraph:
    return open_graph(make_model(folder / "checkpoint", small(name, **fields)))


def of_reference(graph: WeightGraph, pieces: Sequence[int] = (), prompt: Sequence[int] = PROMPT) -> np.ndarray:
    forward, state, rows = Forward(graph), State(1), []
    for low, high in itertools.pairwise((0, *pieces, len(prompt))):
        rows += forward.extend(state, [prompt[low:high]])
    return np.concatenate(rows)


def of_runner(runner: Runner, pieces: Sequence[int] = ()) -> np.ndarray:
    runner.reset()
    return np.concatenate([runner.extend(PROMPT[low:high]) for low, high in itertools.pairwise((0, *pieces, 100))])


def run(graph: WeightGraph, folder: Path, quant: str = "fp32", **options: str) -> tuple[Runner, WeightGraph]:
    """An artifact in its runtime, and the graph with the weights that the artifact has."""
    target: Target = get_target("onnx").with_options(options)
    artifact = replace(write_artifact(graph, target, quant, folder / quant), entry={"options": options})
    assert open_graph(artifact.folder, weights=False).config == graph.config
    return target.run(artifact, threads=1), graph.with_weights(target.read(artifact))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, tmp_path: Path, record_property: Any) -> None:
    name, fields = VARIANTS[variant]
    graph = model(tmp_path, name, **fields)
    runner, own = run(graph, tmp_path)
    for pieces in ((), PIECES):
        difference = float(np.abs(of_runner(runner, pieces) - of_reference(own, pieces)).max())
        record_property(f"in {len(pieces) + 1} pieces", difference)
        assert difference <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_as_transformers_5_saves_it(name: str, tmp_path: Path) -> None:
    graph = open_graph(make_model(tmp_path / "checkpoint", small(name), as_saved=True))
    runner, own = run(graph, tmp_path)
    np.testing.assert_allclose(of_runner(runner), of_reference(own), atol=TOLERANCE)


@pytest.mark.parametrize("quant", ["fp16", "q8", "q4f16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_quantised_runs_its_own_weights(name: str, quant: str, tmp_path: Path, record_property: Any) -> None:
    """What is left is arithmetic in half precision and activations of 8 bits; a router's choice may turn by it."""
    runner, own = run(model(tmp_path, name), tmp_path, quant)
    found = error(of_runner(runner, PIECES), of_reference(own, PIECES))
    record_property("relative error", found)
    assert found < (0.005 if quant == "fp16" else 0.06) + (0.15 if name in MIXTURES else 0)


@pytest.mark.parametrize("quant", ["q8", "q4"])
@pytest.mark.parametrize("name", MIXTURES)
def test_fused_experts(name: str, quant: str, tmp_path: Path) -> None:
    """QMoE: the same weights, and the same choice but where the activations' 8 bits turn it."""
    fields = {"intermediate_size": 64} if name == MIXTURES[1] else {"moe_intermediate_size": 64}
    runner, own = run(model(tmp_path, name, **fields), tmp_path, quant, onnx_moe="qmoe")
    assert error(of_runner(runner), of_reference(own)) < 0.2


@pytest.mark.parametrize("caches", ["window", "whole"])
def test_windows_with_caches_of_either_kind(caches: str, tmp_path: Path) -> None:
    runner, own = run(model(tmp_path, "gemma-3-270m"), tmp_path, onnx_caches=caches)
    np.testing.assert_allclose(of_runner(runner, PIECES), of_reference(own, PIECES), atol=TOLERANCE)


@pytest.mark.parametrize("way", ["left", "right"])
@pytest.mark.parametrize("name", ["SmolLM3-3B", "gemma-3-270m", "Phi-4-mini", "Qwen3-30B-A3B"])
def test_padded_rows_are_the_prompts_alone(name: str, way: str, tmp_path: Path) -> None:
    """Rows of one kind of length: which of Phi's tables is meant is said by the longest, as in transformers."""
    graph = model(tmp_path, name)
    runner, _ = run(graph, tmp_path)
    for prompts in ([PROMPT[:40], PROMPT[5:9], PROMPT[9:31]], [PROMPT, PROMPT[20:90]]):
        for prompt, found in zip(prompts, runner.batch(prompts, way), strict=True):
            pieces = (len(prompt) - 1,) if way == "left" else ()
            np.testing.assert_allclose(found, of_reference(graph, pieces, prompt), atol=TOLERANCE)


def _far(graph: WeightGraph) -> WeightGraph:
    """With a stream beyond half precision: what the branches of one layer add is ten thousand times as much."""
    changed = {}
    for role in (Role.POST_OPERATOR_NORM, Role.POST_FFN_NORM):
        gain = graph.layers[1][role]
        changed[role, 1] = ArrayTensor(gain.name, gain.read() * np.float32(30_000))
    return graph.with_weights(changed)


def test_a_stream_beyond_half_precision(tmp_path: Path) -> None:
    """Gemma's is; the same graph with a stream in half precision is not the model any more."""
    graph = _far(model(tmp_path, "gemma-3-270m"))
    stream = list(Forward(graph).trace([PROMPT]))
    assert max(float(np.abs(x).max()) for x in stream) > 65_504
    runner, own = run(graph, tmp_path / "wide", "fp16")
    assert error(of_runner(runner, PIECES), of_reference(own, PIECES)) < 0.02
    family = graph.config.family
    narrow = replace(graph.config, family=replace(family, onnx=replace(family.onnx, is_wide=False)))
    runner, _ = run(replace(graph, config=narrow), tmp_path / "narrow", "fp16")
    with np.errstate(invalid="ignore"):
        assert not error(of_runner(runner, PIECES), of_reference(own, PIECES)) < 0.5


def _blocks(**fields: Any) -> Callable[[Branch], Branch]:
    """Other fields for every block that has them."""

    def change(block: Block) -> Block:
        return replace(block, **fields) if all(hasattr(block, key) for key in fields) else block

    return lambda branch: replace(branch, block=change(branch.block))


def _default_rope(branch: Branch) -> Branch:
    block = branch.block
    if not isinstance(block, Attention) or block.rope is None:
        return branch
    return replace(branch, block=replace(block, rope=default_rope(block.rope.theta, block.head_dim)))


def _no_factor(branch: Branch) -> Branch:
    block = branch.block
    if not isinstance(block, Attention) or block.rope is None:
        return branch
    return replace(branch, block=replace(block, rope=replace(block.rope, factor=1.0)))


def _never_long(branch: Branch) -> Branch:
    block = branch.block
    if not isinstance(block, Attention) or block.rope is None:
        return branch
    return replace(branch, block=replace(block, rope=replace(block.rope, long=None)))


FAULTS: dict[str, tuple[str, Callable[[Branch], Branch]]] = {
    "activation": ("gemma-3-270m", _blocks(activation=Activation.SILU)),
    "scale of scores": ("gemma-3-270m", _blocks(score_scale=None)),
    "windows": ("gemma-3-270m", _blocks(window=None)),
    "llama3": ("Llama-3.2-1B", _default_rope),
    "part of a head": ("Phi-4-mini", _default_rope),
    "factor": ("Phi-4-mini", _no_factor),
    "long table": ("Phi-4-mini", _never_long),
    "scale of branches": ("Granite-3.3-2B", lambda branch: replace(branch, scale=1.0)),
    "weights of experts": ("Qwen3-30B-A3B", _blocks(is_normalised=False)),
    "head norms": ("Qwen3-0.6B", _blocks(qk_norm=None)),
}


def faulty(graph: WeightGraph, change: Callable[[Branch], Branch]) -> WeightGraph:
    """The graph with other branches for the same weights."""
    new = tuple(tuple(change(branch) for branch in layer) for layer in graph.config.layers)
    layers = tuple(replace(layer, branches=own) for layer, own in zip(graph.layers, new, strict=True))
    return replace(graph, config=replace(graph.config, layers=new), layers=layers)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_planted_is_seen(fault: str, tmp_path: Path) -> None:
    """Negative control: the comparison fails, and fails because of the fault."""
    name, change = FAULTS[fault]
    graph = model(tmp_path, name)
    wrong = faulty(graph, change)
    target = get_target("onnx")
    found = of_runner(target.run(write_artifact(wrong, target, "fp32", tmp_path / "out"), threads=1))
    assert np.abs(found - of_reference(graph)).max() > 20 * TOLERANCE
    np.testing.assert_allclose(found, of_reference(wrong), atol=TOLERANCE)


def judged(graph: WeightGraph, written: WeightGraph, folder: Path, quant: str) -> ArtifactResult:
    """What the validator says of an artifact of one graph, held against another."""
    artifact = write_artifact(written, "onnx", quant, folder)
    return validate([artifact], graph, prompts=few_prompts(), threads=1).results[0]


@pytest.mark.parametrize("name", some_slow(FAMILIES, quick={"Llama-3.2-1B", "gemma-3-270m"}))
def test_the_gate(name: str, tmp_path: Path) -> None:
    graph = model(tmp_path, name, **_LONG, **_LONGER.get(name, {}))
    result = judged(graph, graph, tmp_path / "out", "q4f16")
    assert result.verdict is Verdict.PASS, result.message
    assert {gate.part for gate in result.gates} >= {Part.WEIGHTS, Part.EXECUTION}


@pytest.mark.parametrize(
    "fault",
    some_slow(["activation", "llama3", "factor", "scale of branches", "weights of experts"], quick={"activation"}),
)
def test_the_gate_stops_what_is_planted(fault: str, tmp_path: Path) -> None:
    name, change = FAULTS[fault]
    graph = model(tmp_path, name, **_LONG, **_LONGER.get(name, {}))
    result = judged(graph, faulty(graph, change), tmp_path / "out", "q4f16")
    assert result.verdict is Verdict.FAIL
