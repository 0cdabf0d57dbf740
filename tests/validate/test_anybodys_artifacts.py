"""Artifacts of the stock tools, without a manifest: sound ones pass what is exact, planted bugs are found, the rest is said."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from lfm_convert.convert import bundled, pipeline
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.gguf_file.reader import read_gguf, tensor_nbytes
from lfm_convert.quantize.policies.gguf import FILE_TYPES
from lfm_convert.validate.gates import Part, part_verdicts
from lfm_convert.validate.results import ArtifactResult, Report, Verdict
from support.artifacts import write_artifact
from support.checkpoints import make_checkpoint
from support.configs import dense_config
from support.safetensors_files import Tensor, edit_tensors

llama = pytest.importorskip("cyllama.llama.llama_cpp")
mlx_lm = pytest.importorskip("mlx_lm")
pytest.importorskip("onnxruntime")

UNKNOWN = "no manifest: provenance unknown"
EXACT = (Part.TOKENIZER, Part.WEIGHTS, Part.EXECUTION, Part.CACHE)
IQ3_S = 26  # of `enum llama_ftype`


@pytest.fixture(scope="module")
def dense() -> WeightGraph:
    return open_graph(bundled.path("dense"))


@pytest.fixture(scope="module")
def stock(dense: WeightGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each artifact that is quantised by its own tool: llama.cpp's, mlx-lm's, and a graph as onnx-community's."""
    from support.community_onnx import Style, write_community

    folder = tmp_path_factory.mktemp("stock")
    original = write_artifact(dense, "gguf", "F32", folder / "own").path
    for name, number in {**FILE_TYPES, "IQ3_S": IQ3_S}.items():
        if name in ("Q4_K_M", "Q8_0", "IQ3_S"):
            params = llama.LlamaModelQuantizeParams()
            params.ftype, params.nthread = number, 2
            llama.model_quantize(str(original), str(folder / f"{name}.gguf"), params)
    source = Path(shutil.copytree(bundled.path("dense"), folder / "source"))
    config = json.loads((source / "config.json").read_text())
    block = {"block_dim": config["hidden_size"], "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0}
    (source / "config.json").write_text(json.dumps({**config, **block, "block_auto_adjust_ff_dim": False}))
    mlx_lm.convert(str(source), str(folder / "mlx"), quantize=True, q_bits=4)
    write_community(dense, folder / "onnx-q4", Style(bits=4))
    write_community(dense, folder / "onnx-positions", Style(positions=True, checkpoint_names=True))
    write_community(dense, folder / "onnx-last", Style(keeps=False, last_only=True))
    return folder


@pytest.fixture(scope="module")
def sound(stock: Path, dense: WeightGraph, few: Path) -> Report:
    names = ("Q4_K_M.gguf", "Q8_0.gguf", "IQ3_S.gguf", "mlx", "onnx-q4", "onnx-positions", "onnx-last")
    return pipeline.validate([stock / name for name in names], reference=dense, prompts=few)


def result(report: Report, name: str) -> ArtifactResult:
    (found,) = (each for each in report.results if name in each.artifact.label)
    return found


@pytest.mark.parametrize("name", ["Q4_K_M.gguf", "Q8_0.gguf", "mlx", "onnx-q4", "onnx-positions", "onnx-last"])
def test_sound_stock_artifacts_pass_what_is_exact(sound: Report, name: str) -> None:
    found = result(sound, name)
    verdicts = part_verdicts(found.gates)
    assert {part: verdicts.get(part.value) for part in EXACT} == dict.fromkeys(EXACT, "pass"), found.message
    assert found.not_judged == {}
    assert found.notes == (UNKNOWN,)


def test_what_is_not_decoded_is_not_judged(sound: Report) -> None:
    """llama.cpp runs IQ3_S; of its weights only those of other types are compared."""
    found = result(sound, "IQ3_S.gguf")
    assert found.artifact.quant == "IQ3_S"
    assert "tensors in IQ3_S, such as blk.0" in found.not_judged[Part.EXECUTION]
    assert found.execution is None and found.metrics is not None
    assert {error.role for error in found.weights} >= {"embed", "conv_kernel", "q_norm"}
    assert "execution, and weights in part, are not judged" in found.message
    assert found.to_json()["not_judged"].keys() == {"weights", "execution"}
    assert {gate.name: gate.passed for gate in found.gates}["class_kld"]


def gguf_swapped(path: Path) -> None:
    """Gate and up of layer 1 exchanged, each whole."""
    data, file = bytearray(path.read_bytes()), read_gguf(path)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    gate, up = (tensors[f"blk.1.ffn_{name}.weight"] for name in ("gate", "up"))
    spans = [slice(start := file.data_offset + t.offset, start + tensor_nbytes(t)) for t in (gate, up)]
    assert gate.encoding == up.encoding
    data[spans[0]], data[spans[1]] = data[spans[1]], data[spans[0]]
    path.write_bytes(data)


def gguf_theta(path: Path) -> None:
    """Another base of the rotation in the metadata."""
    data, key = bytearray(path.read_bytes()), b"lfm2.rope.freq_base"
    at = data.index(key) + len(key) + 4
    assert struct.unpack_from("<f", data, at)[0] == read_gguf(path).metadata["lfm2.rope.freq_base"]
    struct.pack_into("<f", data, at, 3e4)
    path.write_bytes(data)


def mlx_swapped(folder: Path) -> None:
    """Keys and values of one layer exchanged."""

    def change(tensors: dict[str, Tensor]) -> None:
        for part in ("weight", "scales", "biases"):
            key, value = (f"model.layers.2.self_attn.{name}_proj.{part}" for name in "kv")
            tensors[key], tensors[value] = tensors[value], tensors[key]

    edit_tensors(folder / "model.safetensors", change)


def mlx_theta(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 3e4}))


def onnx_taps(folder: Path) -> None:
    """The taps of one convolution reversed."""
    import onnx

    path = folder / "onnx" / "model_q4.onnx"
    proto = onnx.load(str(path))
    (kernel,) = (each for each in proto.graph.initializer if each.name == "model.layers.1.conv.conv.weight")
    taps = onnx.numpy_helper.to_array(kernel)
    kernel.CopyFrom(onnx.numpy_helper.from_array(taps[..., ::-1].copy(), kernel.name))
    (path.parent / f"{path.name}_data").unlink()
    onnx.save_model(proto, str(path), save_as_external_data=True, location=f"{path.name}_data")


def onnx_tables(folder: Path) -> None:
    """Sines and cosines exchanged on their way into the attention."""
    import onnx

    path = folder / "onnx" / "model_q4.onnx"
    proto = onnx.load(str(path), load_external_data=False)
    for node in proto.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[7], node.input[8] = node.input[8], node.input[7]
    path.write_bytes(proto.SerializeToString())


BUGS: dict[str, tuple[str, Callable[[Path], None], Part, str]] = {
    "gguf-swapped": ("Q4_K_M.gguf", gguf_swapped, Part.WEIGHTS, "layer 1 ffn_"),
    "gguf-theta": ("Q8_0.gguf", gguf_theta, Part.EXECUTION, ""),
    "mlx-swapped": ("mlx", mlx_swapped, Part.WEIGHTS, "layer 2 attn_"),
    "mlx-theta": ("mlx", mlx_theta, Part.EXECUTION, ""),
    "onnx-taps": ("onnx-q4", onnx_taps, Part.WEIGHTS, "layer 1 conv_kernel"),
    "onnx-tables": ("onnx-q4", onnx_tables, Part.EXECUTION, ""),
}


@pytest.fixture(scope="module")
def planted(
    stock: Path, dense: WeightGraph, few: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ArtifactResult]:
    folder, paths = tmp_path_factory.mktemp("planted"), {}
    for name, (source, plant, *_) in BUGS.items():
        original = stock / source
        paths[name] = folder / (f"{name}.gguf" if original.is_file() else name)
        (shutil.copy if original.is_file() else shutil.copytree)(original, paths[name])
        plant(paths[name])
    report = pipeline.validate(list(paths.values()), reference=dense, prompts=few)
    return dict(zip(paths, report.results, strict=True))


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_failed_where_it_is(planted: dict[str, ArtifactResult], name: str) -> None:
    _, _, part, where = BUGS[name]
    found = planted[name]
    assert found.verdict is Verdict.FAIL
    verdicts = part_verdicts(found.gates)
    assert verdicts[part.value] == "fail"
    assert where in found.message
    if part is Part.EXECUTION:
        assert verdicts[Part.WEIGHTS.value] == "pass"


def validate(path: Path, *options: object) -> int:
    return main(["validate", str(path), *map(str, options)])


def test_a_reference_is_required(stock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Q8_0.gguf", "mlx", "onnx-q4"):
        assert validate(stock / name) == 2
        assert "--reference is needed" in (said := capsys.readouterr().err)
        assert "has no manifest that says what it was made from" in said


def test_the_verdict_is_written_nowhere(
    stock: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(stock / "Q8_0.gguf", tmp_path))
    assert validate(path, "-r", "bundled:dense", "--prompts", few) == 0
    assert f"Q8_0.gguf: pass: {UNKNOWN}" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["Q8_0.gguf"]


def test_a_manifest_beside_it_is_not_its_own(stock: Path, dense: WeightGraph, few: Path, tmp_path: Path) -> None:
    """A stranger in a folder of ours: neither its source nor its hashes are those of the manifest."""
    pipeline.convert(dense, target="gguf", quant="Q4_0", out=tmp_path, validate_after=False)
    before = (tmp_path / "lfm-convert.json").read_bytes()
    stranger = Path(shutil.copy(stock / "Q8_0.gguf", tmp_path))
    report = pipeline.validate([stranger], reference=dense, prompts=few)
    assert report.results[0].notes == (UNKNOWN,)
    assert [artifact.is_recognised for artifact in find_artifacts(tmp_path)] == [False]
    assert (tmp_path / "lfm-convert.json").read_bytes() == before


@pytest.mark.parametrize("name", ["Q8_0.gguf", "mlx", "onnx-q4"])
def test_of_another_model_or_vocabulary_it_never_passes(stock: Path, few: Path, name: str, tmp_path: Path) -> None:
    config = json.loads((bundled.path("dense") / "config.json").read_text())
    shapes = {key: config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")}
    made = dense_config(**shapes, num_hidden_layers=config["num_hidden_layers"])
    layers = {"layer_types": config["layer_types"], "full_attn_idxs": None}
    smaller = make_checkpoint(tmp_path / "words", {**made, **layers, "vocab_size": 512})
    report = tmp_path / "report.json"
    for reference, sentence in ((smaller, "shape"), ("bundled:moe", "shape")):
        assert validate(stock / name, "-r", reference, "--prompts", few, "--json", report) == 3
        (found,) = json.loads(report.read_text())["artifacts"]
        assert found["verdict"] == "fail" and sentence in found["message"]


@pytest.mark.parametrize("bits", [4, None])
@pytest.mark.parametrize("is_sound", [True, False], ids=["sound", "another"])
def test_of_weights_without_names_another_model_never_passes(
    dense: WeightGraph, few: Path, bits: int | None, tmp_path: Path, *, is_sound: bool
) -> None:
    """Nobody can tell which array is which weight: it must still predict as the checkpoint does in as many bits."""
    from support.community_onnx import Style, write_community

    turned = {w.address: w.view.read() for w in dense.weights() if w.role is Role.FFN_UP}
    other = dense.with_weights({at: ArrayTensor("up", values[::-1].copy()) for at, values in turned.items()})
    path = write_community(dense if is_sound else other, tmp_path, Style(bits=bits))
    model = onnx.load(path)
    names = {name: f"array_{k}" for k, name in enumerate(i.name for i in model.graph.initializer)}
    for initializer in model.graph.initializer:
        initializer.name = names[initializer.name]
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save_model(model, path)
    (found,) = pipeline.validate([tmp_path], reference=dense, prompts=few).results
    gates = {gate.name: gate.passed for gate in found.gates}
    assert Part.EXECUTION in found.not_judged, found.message
    assert gates["class_kld"] is is_sound
    assert (found.verdict is Verdict.PASS) is is_sound, (found.message, [g for g in found.gates if not g.passed])


def test_half_of_it_is_refused(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(stock / "onnx-q4", tmp_path / "onnx"))
    (folder / "onnx" / "model_q4.onnx_data").unlink()
    assert validate(folder, "-r", "bundled:dense") == 5
    assert "is not whole: 'model_q4.onnx_data' is missing" in capsys.readouterr().err
    folder = Path(shutil.copytree(stock / "mlx", tmp_path / "mlx"))
    (folder / "model.safetensors").unlink()
    assert validate(folder, "-r", "bundled:dense") == 5
    assert "missing model.safetensors" in capsys.readouterr().err


def test_compare_and_inspect_take_them(stock: Path, few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(stock / name) for name in ("Q8_0.gguf", "onnx-q4")]
    assert main(["compare", *paths, "-r", "bundled:dense", "--prompts", str(few), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["first"], found["second"]) == ("Q8_0.gguf", "onnx-q4/onnx/model_q4.onnx")
    assert main(["compare", paths[0], str(stock), "-r", "bundled:dense"]) == 2
    said = capsys.readouterr().err
    assert "give their files, not folders" in said and "running" not in said
    assert main(["inspect", paths[1], "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (row["target"], row["quant"], row["manifest"], row["verdict"]) == ("onnx", "q4", False, None)
    assert row["encodings"].keys() == {"F32", "U8"}
    assert main(["inspect", str(stock), "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["artifacts"]
    assert sorted(row["quant"] for row in rows) == ["4bit", "IQ3_S", "Q4_K_M", "Q8_0"]
