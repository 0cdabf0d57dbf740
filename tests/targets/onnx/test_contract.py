"""The folder and the graph's signature are what ONNX Runtime scripts and Transformers.js expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.targets.onnx import store
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact

FILES = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "q8": "model_quantized.onnx",
    "q4": "model_q4.onnx",
    "q4_mixed": "model_mixed_q4.onnx",
    "q4f16": "model_q4f16.onnx",
}


@pytest.mark.parametrize(
    ("name", "quant", "at_most"),
    [
        ("lfm2-8b-a1b", "q4f16", 4.95e9),
        ("lfm2-8b-a1b", "q4", 5.5e9),
        ("lfm2-8b-a1b", "fp16", 16.75e9),
        ("lfm2.5-8b-a1b", "q4f16", 5.1e9),
    ],
)
def test_sizes_of_published_models(
    name: str, quant: str, at_most: float, published: Callable[[str], WeightGraph]
) -> None:
    assert get_target("onnx").plan(published(name), quant).total_bytes <= at_most


@pytest.mark.parametrize("quant", FILES)
def test_inputs_and_outputs_in_order(moe_graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    artifact = write_artifact(moe_graph, "onnx", quant, tmp_path)
    assert artifact.path == tmp_path / "onnx" / FILES[quant]
    graph = onnx.load(artifact.path, load_external_data=False).graph
    assert [i.name for i in graph.input] == [
        "input_ids", "attention_mask", "num_logits_to_keep",
        "past_conv.0", "past_key_values.1.key", "past_key_values.1.value",
        "past_conv.2", "past_key_values.3.key", "past_key_values.3.value",
    ]  # fmt: skip
    assert [o.name for o in graph.output] == [
        "logits", "present_conv.0", "present.1.key", "present.1.value",
        "present_conv.2", "present.3.key", "present.3.value",
    ]  # fmt: skip
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert shapes["num_logits_to_keep"] == []
    assert shapes["past_conv.0"] == ["batch_size", 128, 3]
    assert shapes["past_key_values.1.key"] == ["batch_size", 2, "past_sequence_length", 32]
    half = onnx.TensorProto.FLOAT16 if quant.endswith("16") else onnx.TensorProto.FLOAT
    assert graph.input[3].type.tensor_type.elem_type == half
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_config_serves_every_client(dense_graph: WeightGraph, tmp_path: Path) -> None:
    write_artifact(dense_graph, "onnx", "q4f16", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layer_types"] == ["conv", "full_attention", "conv", "full_attention"]
    assert "full_attn_idxs" not in config
    assert config["transformers.js_config"] == {
        "use_external_data_format": {"model_q4f16.onnx": 1},
        "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
    }
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer_config["chat_template"] == (tmp_path / "chat_template.jinja").read_text()


@pytest.mark.parametrize("quant", ["q8", "q4", "q4_mixed", "q4f16"])
def test_tied_table_is_stored_once(dense_graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    artifact = write_artifact(dense_graph, "onnx", quant, tmp_path)
    graph = onnx.load(artifact.path, load_external_data=False).graph
    users = [node.op_type for node in graph.node if "model.embed_tokens.values" in node.input]
    assert sorted(users) == ["Gather", "MatMulNBits"]


def test_data_is_cut_below_the_limit(moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 300_000)
    artifact = write_artifact(moe_graph, "onnx", "q4", tmp_path)
    names = [file.name for file in artifact.files]
    assert names[:3] == ["model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx_data_1"]
    largest = max(i.nbytes for i in _initializers(moe_graph))
    assert all(file.stat().st_size <= max(300_000, largest) for file in artifact.files[1:])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model_q4.onnx": len(names) - 1}


def _initializers(graph: WeightGraph) -> list[store.Initializer]:
    from lfm_convert.targets.target import get_target

    return list(get_target("onnx").plan(graph, "q4").details.initializers)
