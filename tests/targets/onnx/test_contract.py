"""The folder and the graph's signature are what ONNX Runtime scripts and Transformers.js expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from lfm_convert.convert import convert
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.onnx import store
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact
from support.checkpoints import lfm3_config, make_checkpoint
from support.configs import preset

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


@pytest.mark.parametrize(("quant", "published_bytes"), [("fp32", 7.18e9), ("fp16", 3.59e9), ("q8", 2.27e9)])
def test_sizes_of_lfm3_beside_the_publishers(quant: str, published_bytes: float, tmp_path: Path) -> None:
    """Those have tables of 262,144 positions for two ropes, which ours do without; their other quants mix widths."""
    (tmp_path / "config.json").write_text(json.dumps(preset("lfm3-1.7b")))
    plan = get_target("onnx").plan(open_graph(tmp_path, weights=False), quant)
    tables = 2 * 2 * 262_144 * 64 * (2 if quant == "fp16" else 4)
    assert abs(plan.total_bytes + tables - published_bytes) < 0.01 * published_bytes
    assert sum(t.nbytes for t in plan.tensors if t.role is None) < 0.01 * tables


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


def test_config_of_a_family_that_clients_do_not_know(tmp_path: Path) -> None:
    """Names that Transformers.js has for the same caches; the model's own beside them, and ropes by their right label."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", lfm3_config()))
    write_artifact(graph, "onnx", "q4", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "lfm2"
    assert config["layer_types"] == ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]
    own = ["conv", "conv", "full_attention", "conv", "sliding_attention", "conv"]
    assert config["lfm-convert"] == {"model_type": "lfm3", "layer_types": own}
    assert config["architectures"] == ["Lfm3ForCausalLM"]
    assert config["rope_parameters"]["full_attention"]["rope_type"] == "proportional"
    assert (config["conv_L_cache"], config["head_dim"], config["sliding_window"]) == (7, 48, 16)


def test_genai_gets_a_folder_whose_caches_are_of_one_length(tmp_path: Path) -> None:
    """And is pointed at a graph that has them, whatever lies beside it."""
    graph, out = open_graph(make_checkpoint(tmp_path / "checkpoint", lfm3_config())), tmp_path / "out"
    for quant, caches, expected in (("q4", "window", None), ("q8", "whole", "model_quantized"), ("fp32", "window", "model_quantized")):  # fmt: skip
        convert(graph, target="onnx", quant=quant, out=out, options={"onnx_caches": caches}, validate_after=False)
        path = out / "genai_config.json"
        assert path.exists() == (expected is not None)
        if expected is not None:
            model = json.loads(path.read_text())["model"]
            assert (model["type"], model["decoder"]["filename"]) == ("lfm2", f"onnx/{expected}.onnx")
            assert "sliding_attention" not in model["decoder"]["layer_types"]
    notes = {a["quant"]: " ".join(a["notes"]) for a in json.loads((out / "lfm-convert.json").read_text())["artifacts"]}
    assert "--onnx-caches whole" in notes["q4"] and "--onnx-caches whole" not in notes["q8"]
    assert "model_type 'lfm2'" in notes["q8"]


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
    return list(get_target("onnx").plan(graph, "q4").details.initializers)
