"""Cosines and sines of new positions, put together from short tables, are those of the positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from lfm_convert.graph.blocks import Attention, Rope
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.rotary import cosine, default_rope, proportional_rope, rotary_angles, sine
from lfm_convert.quantize.policies.onnx import POLICIES
from lfm_convert.targets.onnx.builder import IR_VERSION, OPSETS, GraphBuilder
from lfm_convert.targets.onnx.caches import kept_positions
from lfm_convert.targets.onnx.rotary import rotations
from lfm_convert.targets.onnx.store import WeightStore
from lfm_convert.targets.target import get_target
from support.checkpoints import lfm3_config, make_checkpoint

onnx = pytest.importorskip("onnx")

ROPES = {
    "default": default_rope(1e6, 128),
    "proportional": proportional_rope(1e6, 128, 0.5),
    "with a factor": replace(default_rope(1e4, 128), factor=1.5),
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    return open_graph(make_checkpoint(tmp_path_factory.mktemp("rotary"), lfm3_config()))


def of_positions(graph: WeightGraph, rope: Rope, first: int, n_new: int) -> tuple[np.ndarray, np.ndarray]:
    """What the graph computes for `n_new` positions from `first` on."""
    layers = tuple(
        tuple(replace(b, block=replace(b.block, rope=rope)) if isinstance(b.block, Attention) else b for b in layer)
        for layer in graph.config.layers
    )
    config = replace(graph.config, layers=layers)
    b, store = GraphBuilder(onnx.TensorProto.FLOAT), WeightStore(POLICIES[0], "data")
    sequence = b.op("Shape", "input_ids", start=1)
    found = rotations(b, store, config, kept_positions(config, is_whole=False), sequence=sequence)[rope]
    assert not found.is_inside
    b.op("Identity", found.cos, output="cos")
    b.op("Identity", found.sin, output="sin")
    tables = [onnx.numpy_helper.from_array(t.view.rows(0, t.view.n_rows), t.name) for t in store.tensors]
    value, size = onnx.helper.make_tensor_value_info, len(rope.inverse_frequencies)
    inputs = [value(name, onnx.TensorProto.INT64, [1, None]) for name in ("input_ids", "attention_mask")]
    outputs = [value(name, onnx.TensorProto.FLOAT, [None, size]) for name in ("cos", "sin")]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(b.nodes, "rotary", inputs, outputs, initializer=[*b.inline, *tables]),
        opset_imports=[onnx.helper.make_opsetid(*each) for each in OPSETS.items()],
        ir_version=IR_VERSION,
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.zeros((1, n_new), np.int64), "attention_mask": np.ones((1, first + n_new), np.int64)}
    cos, sin = session.run(None, feeds)
    return cos, sin


@pytest.mark.parametrize("name", ROPES)
def test_first_positions_have_the_bits_of_whole_tables(name: str, graph: WeightGraph) -> None:
    rope, factor = ROPES[name], np.float32(ROPES[name].factor)
    cos, sin = of_positions(graph, rope, 0, 512)
    angles = rotary_angles(rope, 0, 512)
    np.testing.assert_array_equal(cos, cosine(angles) * factor)
    np.testing.assert_array_equal(sin, sine(angles) * factor)


@pytest.mark.parametrize("first", [510, 1023, 100_000, 262_140])
@pytest.mark.parametrize("name", ROPES)
def test_later_positions(name: str, first: int, graph: WeightGraph) -> None:
    """To what float32 rounds of an angle of the first 512; whole tables round an angle of 262,143 by a hundredth."""
    rope = ROPES[name]
    found = of_positions(graph, rope, first, 4)
    angles = np.arange(first, first + 4)[:, None] * np.array(rope.inverse_frequencies, np.float32).astype(np.float64)
    for values, function in zip(found, (np.cos, np.sin), strict=True):
        np.testing.assert_allclose(values, function(angles) * rope.factor, atol=3e-5)


def test_tables_are_small_and_one_a_rope(graph: WeightGraph) -> None:
    """Two ropes in two layers each: less than the tables of one at the full context."""
    tensors = [t for t in get_target("onnx").plan(graph, "q4f16").tensors if t.role is None]
    assert [t.name for t in tensors] == [
        f"rotary.{i}.{name}" for i in (0, 1) for name in ("cos_512", "sin_512", "cos", "sin")
    ]
    assert {t.shape for t in tensors} == {(512, 24)}


def test_small_tables_are_whole(tmp_path: Path) -> None:
    fields = {"layer_types": ["conv", "full_attention"] * 3, "max_position_embeddings": 4096}
    plan = get_target("onnx").plan(open_graph(make_checkpoint(tmp_path, lfm3_config(**fields))), "q4f16")
    assert {t.name: t.shape for t in plan.tensors if t.role is None} == {
        "rotary.cos": (4096, 24),
        "rotary.sin": (4096, 24),
    }
