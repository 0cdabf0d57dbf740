"""Graphs of other writers: every weight is read by the names around it, and what is not is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.targets.onnx.arrays import PackedTensor, Packing, Stored, stored
from lfm_convert.targets.onnx.inputs import presents
from lfm_convert.targets.onnx.recognise import recognise
from lfm_convert.targets.target import NotJudged, get_target
from support.artifacts import write_artifact
from support.checkpoints import lfm3_config, make_checkpoint, moe_config
from support.community_onnx import Style, packed, write_community
from support.refusals import refused

TARGET = get_target("onnx")
FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    proto = onnx.load(str(path), load_external_data=False)
    change(proto.graph)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("style", "quant", "most"),
    [
        (Style(), "fp32", 0.0),
        (Style(checkpoint_names=True, positions=True), "fp32", 0.0),
        (Style(bits=4), "q4", 0.12),
        (Style(bits=4, has_zeros=False, checkpoint_names=True), "q4", 0.12),
        (Style(bits=8, has_zeros=False), "q8", 0.01),
    ],
)
def test_every_weight_is_read(dense_graph: WeightGraph, tmp_path: Path, style: Style, quant: str, most: float) -> None:
    write_community(dense_graph, tmp_path, style)
    (found,) = recognise(tmp_path, extra="onnx")
    assert (found.quant, found.folder, len(found.files)) == (quant, tmp_path, 2)
    weights = TARGET.read(found)
    for weight in dense_graph.weights():
        values, stored_values = weight.view.read(), weights[weight.address].read()
        assert stored_values.shape == values.shape
        assert np.linalg.norm(stored_values - values) <= most * np.linalg.norm(values), weight.address


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("has_zeros", [True, False])
def test_packed_rows_by_hand(bits: int, has_zeros: bool) -> None:
    """Rows of 80 in blocks of 32: the last block is not whole."""
    rng, n_rows, block = np.random.default_rng(1), 5, 32
    codes = rng.integers(0, 2**bits, (n_rows, 96)).astype(np.uint8)
    zeros = rng.integers(0, 2**bits, (n_rows, 3)).astype(np.uint8)
    scales = rng.normal(size=(n_rows, 3)).astype(np.float32)
    middle = zeros if has_zeros else np.full_like(zeros, 2 ** (bits - 1))
    steps = codes.reshape(n_rows, 3, block).astype(np.float32) - middle[..., None]
    expected = (steps * scales[..., None]).reshape(n_rows, -1)[:, :80]

    def together(values: np.ndarray) -> np.ndarray:
        n = 8 // bits
        whole = np.pad(values, ((0, 0), (0, -values.shape[1] % n)))
        return sum(whole[:, i::n] << (bits * i) for i in range(n)).astype(np.uint8)

    parts = [Stored("codes", UINT8, (n_rows, 3, block * bits // 8), together(codes)), Stored("s", FLOAT, (15,), scales)]
    packed_zeros = Stored("z", UINT8, (), together(zeros)) if has_zeros else None
    view = PackedTensor("w", (n_rows, 80), Packing(bits, block), *parts, packed_zeros)
    np.testing.assert_array_equal(view.rows(1, 4), expected[1:4])


def test_experts_of_a_fused_operator(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """Ours, read by names as if it were not: gate and up by turns, in four bits with zero points."""
    target = get_target("onnx").with_options({"onnx_moe": "qmoe"})
    written = write_artifact(moe_graph, target, "q4", tmp_path)
    proto = onnx.load(str(written.path), load_external_data=False)
    proto.producer_name = "somebody"
    written.path.write_bytes(proto.SerializeToString())
    (found,) = recognise(written.path, extra="onnx")
    with pytest.raises(NotJudged, match="the token table") as caught:
        TARGET.read(found)
    for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN):
        values, read = moe_graph.layers[2][role].read(), caught.value.decoded[role, 2].read()
        assert np.linalg.norm(read - values) < 0.12 * np.linalg.norm(values)


@pytest.mark.parametrize("config", [moe_config(), lfm3_config()], ids=["moe", "lfm3, whose config has LFM2's names"])
def test_ours_without_its_manifest_is_read_as_ours(config: dict[str, Any], tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "model", config))
    written = write_artifact(graph, "onnx", "q8", tmp_path / "onnx-folder")
    (found,) = recognise(written.path, extra="onnx")
    assert found.quant == "q8"
    assert TARGET.read(found).keys() == {weight.address for weight in graph.weights()}


def test_what_no_name_tells_is_said(dense_graph: WeightGraph, tmp_path: Path) -> None:
    def rename(graph: Any) -> None:
        for each in graph.initializer:
            if each.name == "model.layers.1.attn.v_proj.MatMul.weight":
                each.name = "onnx::MatMul_123"
        for node in graph.node:
            if node.name == "/model/layers.1/attn/v_proj/MatMul":
                node.name, node.input[1] = "MatMul_7", "onnx::MatMul_123"
                node.output[0] = "v"
            node.input[:] = [
                "v" if name == "/model/layers.1/attn/v_proj/MatMul/output_0" else name for name in node.input
            ]

    path = edited(write_community(dense_graph, tmp_path, Style()), rename)
    (found,) = recognise(path, extra="onnx")
    with pytest.raises(
        NotJudged, match=r"'onnx::MatMul_123'; no name tells which array is attn_v of layer 1"
    ) as caught:
        TARGET.read(found)
    assert caught.value.decoded.keys() == {w.address for w in dense_graph.weights()} - {(Role.ATTN_V, 1)} | {
        (Role.LM_HEAD, None)
    }


def test_inputs_of_unknown_meaning_are_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    path = write_community(dense_graph, tmp_path, Style())
    extra = onnx.helper.make_tensor_value_info("pixel_values", FLOAT, [1])
    with refused(path, "takes pixel_values: expected a graph that takes input_ids and caches"):
        recognise(edited(path, lambda graph: graph.input.append(extra)), extra="onnx")


def test_the_encoder_beside_a_decoder_is_passed_over(dense_graph: WeightGraph, tmp_path: Path) -> None:
    path = write_community(dense_graph, tmp_path, Style())
    value = onnx.helper.make_tensor_value_info("pixels", FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["pixels"], ["y"])], "v", [value], [])
    onnx.save_model(onnx.helper.make_model(graph), str(path.with_name("vision_encoder.onnx")))
    assert [found.path for found in recognise(tmp_path, extra="onnx")] == [path]
    with refused("vision_encoder.onnx", "takes pixels"):
        recognise(path.with_name("vision_encoder.onnx"), extra="onnx")


def test_data_that_is_elsewhere_or_short_is_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    path = write_community(dense_graph, tmp_path, Style())
    data = path.with_name(f"{path.name}_data")
    data.write_bytes(data.read_bytes()[:-1000])
    (found,) = recognise(path, extra="onnx")
    with refused(data, "is truncated"):
        TARGET.read(found)

    def lead_out(graph: Any) -> None:
        for entry in graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = "../secret"

    with refused(path, "reads '../secret', which lies outside its folder"):
        recognise(edited(path, lead_out), extra="onnx")


def test_another_model_beside_it_is_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    write_community(dense_graph, tmp_path, Style())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with refused("unknown architecture: model_type is 'bert'"):
        recognise(tmp_path, extra="onnx")


def test_caches_go_on_by_name_or_by_place() -> None:
    pasts = ["past.0.conv", "past_key_values.1.key"]
    assert presents(pasts, ["logits", "present.1.key", "present.0.conv"]) == {
        "past.0.conv": "present.0.conv", "past_key_values.1.key": "present.1.key",
    }  # fmt: skip
    assert presents(["past_conv.0"], ["logits", "present_conv.0"]) == {"past_conv.0": "present_conv.0"}
    assert presents(pasts, ["logits", "a", "b"]) == {"past.0.conv": "a", "past_key_values.1.key": "b"}
    assert presents(pasts, ["logits", "a"]) == {}


def test_small_arrays_inside_the_graph(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    for kind in (np.float32, np.float16):
        array = stored(tmp_path, onnx.numpy_helper.from_array(values.astype(kind), "x"))
        assert array is not None
        np.testing.assert_array_equal(array.floats(0, 2), values)
    halves = onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT16, [2, 2], values.reshape(-1))
    array = stored(tmp_path, halves)
    assert array is not None
    np.testing.assert_array_equal(array.floats(0, 2), values)
    assert len(packed(values.repeat(16, axis=1), 4, has_zeros=True)) == 3
