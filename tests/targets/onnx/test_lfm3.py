"""LFM3 in ONNX Runtime: windows, gates, norms on both sides and two ropes, against the graph's forward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.graph.blocks import Attention, Block, Norm, Rope, ShortConv
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.rotary import default_rope
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, Runner, get_target
from support import lfm3
from support.artifacts import write_artifact
from support.checkpoints import lfm3_config, make_checkpoint

pytestmark = pytest.mark.peers

TOLERANCE = 1e-4
PROMPT = lfm3.prompt(3)

VARIANTS: dict[str, dict[str, Any]] = {
    **lfm3.VARIANTS,
    "window of two": {"sliding_window": 2},
    "biased attention": {"attention_bias": True},
    "biased convolution": {"conv_bias": True},
    "small tables": {
        "max_position_embeddings": 4096,
        "layer_types": [lfm3.FULL, "conv", lfm3.FULL, "conv", lfm3.FULL, "conv"],
    },
}


def model(folder: Path, **fields: Any) -> WeightGraph:
    return open_graph(make_checkpoint(folder / "checkpoint", lfm3_config(**fields), dtype="float32"))


def expected_of(graph: WeightGraph, prompt: Sequence[int] = PROMPT) -> np.ndarray:
    return Forward(graph).prefill([prompt])[0][0]


def runner_of(graph: WeightGraph, folder: Path, **options: str) -> Runner:
    """An fp32 artifact in its runtime, without the files beside it."""
    target = get_target("onnx").with_options(options)
    plan = target.plan(graph, "fp32")
    folder.mkdir()
    target.write(plan, graph, folder, Execution(jobs=1))
    return target.run(Artifact(folder / plan.main_file, folder, "onnx", "fp32", "f32", ()), threads=1)


def logits_of(runner: Runner, chunks: Sequence[int] = (), prompt: Sequence[int] = PROMPT) -> np.ndarray:
    """Logits of a prompt in pieces that end at these positions."""
    runner.reset()
    ends = (0, *chunks, len(prompt))
    return np.concatenate([runner.extend(prompt[low:high]) for low, high in itertools.pairwise(ends)])


def in_runtime(graph: WeightGraph, folder: Path) -> np.ndarray:
    return logits_of(runner_of(graph, folder), (30, 31))


@pytest.mark.parametrize(
    ("variant", "caches"),
    [*((name, "window") for name in VARIANTS), ("as published", "whole"), ("all sliding but one", "whole")],
)
def test_logits(variant: str, caches: str, tmp_path: Path) -> None:
    """Whole, in pieces shorter and longer than the window, and token by token."""
    graph = model(tmp_path, **VARIANTS[variant])
    expected, runner = expected_of(graph), runner_of(graph, tmp_path / "out", onnx_caches=caches)
    for chunks in ((), (20, 37), (1, 2, 3, 40), tuple(range(1, len(PROMPT)))):
        np.testing.assert_allclose(logits_of(runner, chunks), expected, atol=TOLERANCE)


def changed(graph: WeightGraph, change: Callable[[Block], Block]) -> WeightGraph:
    """The graph with other blocks for the same weights."""

    def all_changed(layers: Any) -> Any:
        return tuple(tuple(replace(branch, block=change(branch.block)) for branch in layer) for layer in layers)

    config = replace(graph.config, layers=all_changed(graph.config.layers))
    layers = (replace(layer, branches=new) for layer, new in zip(graph.layers, config.layers, strict=True))
    return replace(graph, config=config, layers=tuple(layers))


def with_rope(graph: WeightGraph, rope: Rope | None) -> WeightGraph:
    """The graph with another rope in its full attention."""
    return changed(graph, lambda b: replace(b, rope=rope) if isinstance(b, Attention) and b.window is None else b)


@pytest.mark.parametrize("reading", ["all pairs", "other pairs"])
def test_the_wrong_readings_of_the_rope_fail_the_same_test(reading: str, tmp_path: Path) -> None:
    graph = model(tmp_path)
    right = next(b for b in graph.config.of_kind(Attention).values() if b.window is None)
    assert right.rope is not None
    rope = default_rope(right.rope.theta, right.head_dim)
    if reading == "other pairs":
        half = default_rope(right.rope.theta, right.head_dim // 2).inverse_frequencies
        rope = Rope(theta=right.rope.theta, inverse_frequencies=(*half, *(0.0,) * len(half)))
    found = in_runtime(with_rope(graph, rope), tmp_path / "out")
    assert np.abs(found - expected_of(graph)).max() > 100 * TOLERANCE
    np.testing.assert_allclose(found, expected_of(with_rope(graph, rope)), atol=TOLERANCE)


def _of_attention(**fields: Any) -> Callable[[Block], Block]:
    return lambda block: replace(block, **fields) if isinstance(block, Attention) else block


def _neighbours(block: Block) -> Block:
    if not isinstance(block, Attention) or block.rope is None:
        return block
    return replace(block, rope=replace(block.rope, pairs_neighbours=True))


def _scaled_rope(block: Block) -> Block:
    if not isinstance(block, Attention) or block.rope is None:
        return block
    return replace(block, rope=replace(block.rope, factor=1.25))


@pytest.mark.parametrize(
    "change",
    [
        _of_attention(rope=None),
        _of_attention(qk_norm=None),
        _of_attention(qk_norm=Norm(0.5)),
        _neighbours,
        _scaled_rope,
    ],
    ids=["no rope", "no head norm", "another eps", "neighbours", "factor"],
)
@pytest.mark.parametrize("fields", [{}, VARIANTS["small tables"]], ids=["before attention", "inside attention"])
def test_blocks_that_no_family_has_yet(
    change: Callable[[Block], Block], fields: dict[str, Any], tmp_path: Path
) -> None:
    graph = changed(model(tmp_path, **fields), change)
    np.testing.assert_allclose(in_runtime(graph, tmp_path / "out"), expected_of(graph), atol=TOLERANCE)


def test_branches_and_scales_that_no_family_has_yet(tmp_path: Path) -> None:
    """Scaled branches, one without a norm before its block, scaled embeddings and logits."""
    graph = model(tmp_path)

    def rescaled(layers: Any) -> Any:
        scaled = [tuple(replace(branch, scale=0.5) for branch in layer) for layer in layers]
        scaled[1] = (replace(scaled[1][0], norm=None), scaled[1][1])
        return tuple(scaled)

    config = replace(
        graph.config, layers=rescaled(graph.config.layers), embedding_scale=3.0, logit_scale=0.25, final_norm=Norm(0.1)
    )
    layers = (replace(layer, branches=new) for layer, new in zip(graph.layers, config.layers, strict=True))
    graph = replace(graph, config=config, layers=tuple(layers))
    np.testing.assert_allclose(in_runtime(graph, tmp_path / "out"), expected_of(graph), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_of_attention(is_causal=False), "onnx: cannot say attention to later tokens"),
        (
            lambda b: replace(b, is_causal=False) if isinstance(b, ShortConv) else b,
            "onnx: cannot say a centred short conv",
        ),
    ],
    ids=["attention", "convolution"],
)
def test_a_block_that_onnx_cannot_say(change: Callable[[Block], Block], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        get_target("onnx").plan(changed(model(tmp_path), change), "q4")


@pytest.mark.parametrize("caches", ["window", "whole"])
@pytest.mark.parametrize("fields", [{}, {"attention_bias": True}, {"conv_bias": True}], ids=["plain", "biases", "conv"])
def test_left_padded_rows_are_the_prompts_alone(fields: dict[str, Any], caches: str, tmp_path: Path) -> None:
    """Rows of several lengths, and then token by token until no window sees the padding any more."""
    graph = model(tmp_path, **fields)
    target = get_target("onnx").with_options({"onnx_caches": caches})
    session = onnxruntime.InferenceSession(write_artifact(graph, target, "fp32", tmp_path / "out").path)
    rows, n_first = [PROMPT, PROMPT[20:], PROMPT[40:]], [26, 6, 16]
    rows[2] = [*rows[2], *PROMPT[1:31]]
    width, n_more = max(n_first), 30
    mask = np.array([[0] * (width - n) + [1] * n for n in n_first], np.int64)
    ids = np.array([[0] * (width - n) + row[:n] for row, n in zip(rows, n_first, strict=True)], np.int64)
    past = {i.name: np.zeros([3, *(0 if isinstance(s, str) else s for s in i.shape[1:])], np.float32)
            for i in session.get_inputs()[3:]}  # fmt: skip
    found: list[list[np.ndarray]] = [[], [], []]
    for step in range(n_more + 1):
        feeds = {"input_ids": ids, "attention_mask": mask, "num_logits_to_keep": np.array(0, np.int64), **past}
        logits, *present = session.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        for row, kept in enumerate(mask[:, -ids.shape[1] :]):
            found[row] += list(logits[row][kept == 1])
        ids = np.array([[row[n + step]] for row, n in zip(rows, n_first, strict=True) if n + step < len(row)], np.int64)
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        if len(ids) < 3:
            break
    for row, tokens, n in zip(found, rows, n_first, strict=True):
        assert len(row) > n + 20
        np.testing.assert_allclose(row, expected_of(graph, tokens)[: len(row)], atol=TOLERANCE)


def test_right_padded_rows_are_the_prompts_alone(tmp_path: Path) -> None:
    graph = model(tmp_path)
    runner = runner_of(graph, tmp_path / "out")
    prompts = [PROMPT, PROMPT[:9], PROMPT[5:40]]
    for prompt, logits in zip(prompts, runner.batch(prompts, "right"), strict=True):
        np.testing.assert_allclose(logits, expected_of(graph, prompt), atol=TOLERANCE)


@pytest.mark.parametrize("quant", ["q8", "q4", "q4_mixed", "q4f16"])
def test_quantized_runs_its_own_weights(quant: str, tmp_path: Path) -> None:
    """Against the forward with the artifact's decoded weights: what is left is int8 activations."""
    graph, target = model(tmp_path), get_target("onnx")
    convert(graph, target="onnx", quant=quant, out=tmp_path / "out", validate_after=False)
    (artifact,) = find_artifacts(tmp_path / "out")
    decoded = expected_of(graph.with_weights(target.read(artifact)))
    found = target.run(artifact, threads=1).logits(PROMPT)
    error = np.linalg.norm(found - decoded) / np.linalg.norm(decoded)
    unquantized = np.linalg.norm(found - expected_of(graph)) / np.linalg.norm(expected_of(graph))
    assert error < (0.12 if quant != "q8" else unquantized + 0.01)
    assert quant == "q8" or error < unquantized


def test_a_long_prompt_passes_the_runs_of_the_rotary_tables(tmp_path: Path) -> None:
    prompt = [1, *np.random.default_rng(5).integers(14, 512, 1100).tolist()]
    graph = model(tmp_path, num_hidden_layers=5, sliding_window=300)
    found = logits_of(runner_of(graph, tmp_path / "out"), (500,), prompt)
    np.testing.assert_allclose(found, expected_of(graph, prompt), atol=TOLERANCE)


def test_a_gate_that_is_wrong_is_seen(tmp_path: Path) -> None:
    """Negative control of the comparison: one gate's rows in another order."""
    from lfm_convert.graph.roles import Role
    from lfm_convert.graph.tensor import ArrayTensor

    graph = model(tmp_path)
    gate = graph.layers[2][Role.ATTN_GATE]
    turned = graph.with_weights({(Role.ATTN_GATE, 2): ArrayTensor(gate.name, gate.read()[::-1].copy())})
    assert np.abs(in_runtime(turned, tmp_path / "out") - expected_of(graph)).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("fields", "caches", "lengths"),
    [
        ({}, "window", {2: "past_sequence_length", 4: "past_window_length"}),
        ({}, "whole", {2: "past_sequence_length", 4: "past_sequence_length"}),
        (VARIANTS["all sliding but one"], "window",
         {0: "past_sequence_length", 1: "past_window_length", 2: "past_sequence_length", 3: "past_window_length"}),
    ],
    ids=["window", "whole", "first"],
)  # fmt: skip
def test_caches_of_windows_do_not_grow(
    fields: dict[str, Any], caches: str, lengths: dict[int, str], tmp_path: Path
) -> None:
    """But the first attention's, by which clients count tokens."""
    target = get_target("onnx").with_options({"onnx_caches": caches})
    artifact = write_artifact(model(tmp_path, **fields), target, "fp32", tmp_path / "out")
    graph = onnx.load(artifact.path, load_external_data=False).graph
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    for layer, length in lengths.items():
        assert shapes[f"past_key_values.{layer}.key"] == ["batch_size", 2, length, 48]
    session = onnxruntime.InferenceSession(artifact.path)
    past = {i.name: np.zeros([1, *(0 if isinstance(s, str) else s for s in i.shape[1:])], np.float32)
            for i in session.get_inputs()[3:]}  # fmt: skip
    ids = np.array([PROMPT], np.int64)
    present = session.run(
        None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "num_logits_to_keep": np.array(1), **past}
    )
    sizes = dict(zip((o.name for o in session.get_outputs()), (x.shape for x in present), strict=True))
    for layer, length in lengths.items():
        assert sizes[f"present.{layer}.key"][2] == (15 if length == "past_window_length" else len(PROMPT))
