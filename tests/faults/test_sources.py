"""Sources that are no plain checkpoint: each named for what it is in one sentence, or read where nothing is lost.

Refused: exit code 5, one cause, nothing written. Read: the very bytes that the plain checkpoint gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.pipeline import open_model, plan
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.safetensors import SafetensorsFile
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.hub import environment, serve
from support.quantised_layouts import LAYOUTS, READ_BY_CONFIG, READ_BY_TENSORS, quantise
from support.refusals import refused
from support.safetensors_files import Tensor, edit_tensors, float32, read_tensors, with_header, write_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GATE = "model.layers.0.feed_forward.w1.weight"
LORA = "base_model.model.model.layers.0.feed_forward.w1.lora_A.weight"

Damage = Callable[[Path], object]
Tensors = dict[str, Tensor]


@pytest.fixture
def dense(tiny_dense: Path, tmp_path: Path) -> Path:
    """A copy of the dense model that a test may change."""
    return Path(shutil.copytree(tiny_dense, tmp_path / "model"))


@pytest.fixture
def sentence_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """The sentence a conversion ends with: exit code 5, nothing written, no list of tensors."""

    def convert(folder: Path, *options: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = main([str(folder), "--target", "gguf", "--quant", "Q8_0", "--out", str(tmp_path / "out"), *options])
        printed = capsys.readouterr()
        assert (code, printed.out) == (5, "")
        assert sorted(tmp_path.rglob("*")) == before
        last = printed.err.splitlines()[-1]
        assert last.startswith("lfm-convert: ")
        assert last.count("tensor '") <= 3, last
        assert len(last) < 600, last
        return last

    return convert


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    edit_tensors(folder / WEIGHTS, change)


def configure(folder: Path, name: str = "config.json", **fields: object) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **fields}))


def rename(tensors: Tensors, how: Callable[[str], str]) -> None:
    renamed = {how(name): tensor for name, tensor in tensors.items()}
    tensors.clear()
    tensors.update(renamed)


def converted(folder: Path, out: Path, target: str, quant: str) -> dict[str, str]:
    """The hash of every file of an artifact; the manifest apart, which describes the source."""
    model = folder.with_name("LFM2-Same")  # one name, since artifacts carry it
    folder.rename(model)
    try:
        arguments = [str(model), "--target", target, "--quant", quant, "--out", str(out), "--no-validate"]
        assert main(arguments) == 0
    finally:
        model.rename(folder)
    files = [p for p in out.rglob("*") if p.is_file() and p.name != "lfm-convert.json"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- adapters


def _adapter(folder: Path, **fields: object) -> None:
    folder.mkdir(exist_ok=True)
    fields = {"peft_type": "LORA", "base_model_name_or_path": "LiquidAI/LFM2-350M", "r": 8, **fields}
    configure(folder, "adapter_config.json", **fields)
    down = {LORA: float32(np.ones((8, 128))), LORA.replace("_A", "_B"): float32(np.ones((256, 8)))}
    write_tensors(folder / "adapter_model.safetensors", down)


@pytest.mark.parametrize("config", [False, True], ids=["bare", "with config.json"])
def test_an_adapter_alone_is_named_with_its_base(
    config: bool, tmp_path: Path, sentence_of: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    _adapter(folder)
    (folder / "training_args.bin").write_bytes(b"PK")
    if config:
        configure(folder, **dense_config())
    said = f"{folder}: is a LoRA adapter of LiquidAI/LFM2-350M: name its base as the model, and it with --adapter"
    assert said in sentence_of(folder)
    assert main(["inspect", str(folder)]) == 5
    assert said in capsys.readouterr().err


def test_an_adapter_of_mlx_and_one_without_its_config(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_tensors(folder / "adapters.safetensors", {"model.layers.0.x.lora_a": float32(np.ones((8, 8)))})
    assert "is a LoRA adapter: merge it" in sentence_of(folder)
    configure(folder, "adapter_config.json", fine_tune_type="lora", model="mlx-community/LFM2-350M")
    assert "is a LoRA adapter of mlx-community/LFM2-350M: merge it" in sentence_of(folder)


def test_an_adapter_of_another_kind(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    _adapter(tmp_path / "adapter", peft_type="IA3", base_model_name_or_path=None)
    assert "is an IA3 adapter: merge it into its base first" in sentence_of(tmp_path / "adapter")


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_an_adapter_beside_a_checkpoint_is_said(
    inside: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _adapter(dense / inside)
    arguments = [str(dense), "--target", "gguf", "--quant", "Q8_0"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--no-validate"]) == 0
    where = f"in {inside}/" if inside else "beside the checkpoint"
    assert f"the adapter {where} is not applied" in capsys.readouterr().err.replace("\n", " ")
    assert main(["plan", *arguments]) == 0
    assert f"the adapter {where} is not applied" in capsys.readouterr().err.replace("\n", " ")


def test_an_adapter_saved_with_its_base_unmerged(dense: Path, sentence_of: Callable[..., str]) -> None:
    def wrap(tensors: Tensors) -> None:
        rename(tensors, lambda name: "base_model.model." + name.replace("w1.weight", "w1.base_layer.weight"))
        tensors[LORA.replace("lora_A", "lora_A.default")] = float32(np.ones((8, 128)))

    edit(dense, wrap)
    sentence = sentence_of(dense)
    assert "holds an adapter that is not merged (tensor '" in sentence
    assert "merge it into its base first" in sentence


# --- what trainers leave


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "a training state of PyTorch in parts: merge it and save as safetensors"),
        ("zero_to_fp32.py", "a training state of DeepSpeed: run it with --safe_serialization"),
    ],
)
def test_a_training_state_is_named(name: str, said: str, dense: Path, sentence_of: Callable[..., str]) -> None:
    (dense / WEIGHTS).unlink()
    (dense / name).parent.mkdir(exist_ok=True)
    (dense / name).write_bytes(b"x")
    assert f"missing {WEIGHTS} (found {name}: {said})" in sentence_of(dense)


# --- quantised weights


@pytest.mark.parametrize(
    ("layout", "has_config"),
    [
        pytest.param(layout, has_config, id=f"{layout}-{'config' if has_config else 'tensors'}")
        for has_config, read in ((True, READ_BY_CONFIG), (False, READ_BY_TENSORS))
        for layout in LAYOUTS
        if layout not in read
    ],
)
def test_quantised_weights_are_named(
    layout: str, has_config: bool, dense: Path, sentence_of: Callable[..., str]
) -> None:
    with_config, by_tensors, settings, parts = LAYOUTS[layout]
    edit(dense, lambda tensors: quantise(tensors, parts))
    if has_config:
        configure(dense, quantization_config=settings)
    sentence = sentence_of(dense)
    assert f"{dense}: is quantised by {with_config if has_config else by_tensors} (" in sentence
    assert sentence.endswith("): convert the 16-bit checkpoint it was made from")


# NVFP4 of zeros has a global scale of zero; MLX has its own kernels and is tested as a folder.
@pytest.mark.parametrize("layout", sorted(READ_BY_CONFIG - {"mlx", "mlx-mxfp4", "compressed-nvfp4"}))
def test_quantised_weights_are_read(layout: str, dense: Path) -> None:
    """Each of the layouts that are decoded, with bytes of zero: weights of zero, and every tensor has its place."""
    _, _, settings, parts = LAYOUTS[layout]
    edit(dense, lambda tensors: quantise(tensors, parts))
    configure(dense, quantization_config=settings)
    graph = open_graph(dense)
    assert graph.quantised_as is not None
    assert not next(weight.view for weight in graph.weights() if weight.view.name == GATE).read().any()


def test_experts_of_mxfp4(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    """As gpt-oss has them: blocks and scales of all experts of a layer in one tensor."""
    folder = make_checkpoint(tmp_path / "model", moe_config(), fused_experts=True)

    def pack(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            e, n, k = tensors.pop(name).shape
            tensors[name + "_blocks"] = Tensor("U8", (e, n, k // 32, 16), bytes(e * n * k // 2))
            tensors[name + "_scales"] = Tensor("U8", (e, n, k // 32), bytes(e * n * k // 32))

    edit(folder, pack)
    assert "is quantised by MXFP4 (tensor '" in sentence_of(folder)


@pytest.mark.parametrize(
    "settings", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 4, "group_size": 64}]
)
def test_a_stale_quantization_config_is_noted(
    settings: dict[str, Any], tiny_dense: Path, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = converted(Path(shutil.copytree(tiny_dense, tmp_path / "plain")), tmp_path / "a", "gguf", "Q8_0")
    configure(dense, quantization_config=settings)
    capsys.readouterr()
    assert converted(dense, tmp_path / "b", "gguf", "Q8_0") == expected
    assert "but they are plain floats: they are read as such" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F6_E2M3", 6), ("F4", 4), ("C64", 64)]
)
def test_every_dtype_of_the_format_is_listed(dtype: str, bits: int, tmp_path: Path) -> None:
    n_bytes = 2 * 16 * bits // 8
    header = {"a": {"dtype": dtype, "shape": [2, 16], "data_offsets": [0, n_bytes]}}
    (tmp_path / WEIGHTS).write_bytes(with_header(header, bytes(n_bytes)))
    tensor = SafetensorsFile(tmp_path / WEIGHTS).tensors["a"]
    assert (tensor.dtype.value, tensor.shape, tensor.nbytes) == (dtype, (2, 16), n_bytes)
    with refused(f"tensor 'a' is {dtype}: expected F32, F16 or BF16"):
        tensor.read()


def test_half_a_byte_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}
    (tmp_path / WEIGHTS).write_bytes(with_header(header, bytes(2)))
    with refused("tensor 'a' of shape [3] F4 does not end on a whole byte"):
        SafetensorsFile(tmp_path / WEIGHTS)


# --- models that are no causal language model

ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "embedding": ({"architectures": ["Lfm2BidirectionalModel"]}, "is a bidirectional encoder (architectures names Lfm2BidirectionalModel)"),
    "remote code": (
        {"architectures": None, "auto_map": {"AutoModel": "modeling.Lfm2BidirectionalModel"}},
        "is a bidirectional encoder (architectures names Lfm2BidirectionalModel)",
    ),
    "ColBERT": ({"architectures": ["ColBERTLfm2Model"]}, "is a retrieval model (ColBERT)"),
    "encoder": ({"architectures": ["Lfm2EncoderForMaskedLM"]}, "is a bidirectional encoder"),
    "not causal": ({"is_causal": False}, "is a model that attends both ways (is_causal is false)"),
    "classifier": ({"architectures": ["Lfm2ForSequenceClassification"]}, "is a classifier"),
    "vision": ({"architectures": ["Lfm2VlForConditionalGeneration"]}, "is a vision-language model"),
    "vision type": ({"model_type": "lfm2_vl", "vision_config": {}}, "is a vision-language model (model_type is 'lfm2_vl')"),
    "audio": (
        {"model_type": None, "architectures": ["Lfm2AudioForConditionalGeneration"], "lfm": dense_config(), "codebooks": 8},
        "is an audio model (architectures names Lfm2AudioForConditionalGeneration)",
    ),
    "audio without class": (
        {"model_type": None, "architectures": None, "lfm": dense_config(), "codebooks": 8},
        "is an audio model (lfm holds its language model's config)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENCODERS)
@pytest.mark.parametrize("command", ["convert", "plan"])
def test_other_models_are_refused_by_name(
    case: str, command: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, said = ENCODERS[case]
    configure(dense, **fields)
    out = ["--out", str(tmp_path / "out")] if command == "convert" else []
    assert main([command, str(dense), "--target", "gguf", "--quant", "Q8_0", *out]) == 5
    printed = capsys.readouterr()
    assert said in printed.err
    assert "expected a causal language model of lfm2 or lfm2_moe" in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_retrieval_model_that_does_not_say_its_modules(dense: Path, sentence_of: Callable[..., str]) -> None:
    """LFM2-ColBERT: a causal Lfm2Model, whose head is a projection in a folder of its own."""
    configure(dense, architectures=["Lfm2Model"])
    (dense / "config_sentence_transformers.json").write_text("{}")
    assert "is a retrieval model of sentence-transformers (config_sentence_transformers.json is there)" in sentence_of(
        dense
    )


MODULES: dict[str, tuple[Any, str]] = {
    "none": (
        [],
        "modules.json: has the modules none: expected them in the order Transformer, Pooling, Dense, Normalize",
    ),
    "no list": ({}, "modules.json: expected a list of modules"),
    "another": ([{"type": "models.Transformer"}, {"type": "models.LSTM"}], "names the module 'models.LSTM'"),
    "outside": ([{"type": "models.Transformer", "path": "../x"}], "places the module Transformer at '../x'"),
    "no pooling": (
        [{"type": "models.Transformer"}, {"type": "models.Pooling", "path": "1_Pooling"}],
        "1_Pooling/config.json is missing, which modules.json names",
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_no_block_says(case: str, dense: Path, sentence_of: Callable[..., str]) -> None:
    modules, said = MODULES[case]
    configure(dense, architectures=["Lfm2BidirectionalModel"])
    (dense / "modules.json").write_text(json.dumps(modules))
    assert said in sentence_of(dense)


@pytest.mark.parametrize(
    ("module", "fields", "said"),
    [
        (
            "Pooling",
            {"pooling_mode": "max"},
            "1_Pooling/config.json: pools by max: expected one of cls, mean, lasttoken",
        ),
        (
            "Pooling",
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "pools by ['pooling_mode_cls_token'",
        ),
        ("Dense", {"bias": True, "out_features": 8}, "bias is True, activation_function None, use_residual False"),
        ("Dense", {"bias": False, "activation_function": "torch.nn.Identity"}, "out_features is None"),
    ],
)
def test_modules_that_do_what_no_block_says(
    module: str, fields: dict[str, Any], said: str, dense: Path, sentence_of: Callable[..., str]
) -> None:
    configure(dense, architectures=["Lfm2BidirectionalModel"])
    modules = [{"type": "models.Transformer"}, {"type": f"models.{module}", "path": f"1_{module}"}]
    (dense / "modules.json").write_text(json.dumps(modules))
    (dense / f"1_{module}").mkdir()
    (dense / f"1_{module}/config.json").write_text(json.dumps(fields))
    assert said in sentence_of(dense)


def test_a_centred_convolution_of_even_width(dense: Path, sentence_of: Callable[..., str]) -> None:
    configure(dense, architectures=["Lfm2BidirectionalModel"], conv_L_cache=4)
    (dense / "modules.json").write_text(json.dumps([{"type": "models.Transformer"}]))
    assert "conv_L_cache is 4: expected an odd number" in sentence_of(dense)


@pytest.mark.parametrize(
    "names", [["Lfm2ForCausalLM"], ["LFM2ForCausalLM"], ["Lfm2Model"], ["PeftModelForCausalLM"], None, "Lfm2", [3], []]
)
def test_other_names_of_the_class_are_read(names: object, dense: Path) -> None:
    configure(dense, architectures=names)
    assert open_graph(dense).n_parameters


# --- names and files

PREFIXES: dict[str, Callable[[str], str]] = {
    "compiled": lambda name: "_orig_mod." + name,
    "compiled layers": lambda name: name.replace(".0.", ".0._orig_mod.").replace(".1.", ".1._orig_mod."),
    "data parallel": lambda name: "module." + name,
    "PEFT": lambda name: "base_model.model." + name,
    "nested": lambda name: "module._orig_mod.base_model.model." + name,
    "sharded": lambda name: "_fsdp_wrapped_module." + name.replace(".0.", ".0._fsdp_wrapped_module."),
    "trainer's module": lambda name: "model." + name,
    "bare": lambda name: name.removeprefix("model."),
    "compiled bare": lambda name: "_orig_mod." + name.removeprefix("model."),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_wrapped_and_bare_names_are_read(case: str, dense: Path) -> None:
    plain = {name: tensor.data for name, tensor in read_tensors(dense / WEIGHTS).items()}
    edit(dense, lambda tensors: rename(tensors, PREFIXES[case]))
    graph = open_graph(dense)
    assert graph.checkpoint is not None
    assert graph.checkpoint.tensors.keys() == plain.keys()
    (note,) = graph.notes
    assert "read under other names than the file has: '" in note


@pytest.mark.parametrize("case", ["nested", "bare"])
def test_the_names_of_an_index_are_read(case: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", moe_config(tie_embedding=False), shards=3)
    for shard in folder.glob("*.safetensors"):
        edit_tensors(shard, lambda tensors: rename(tensors, PREFIXES[case]))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {PREFIXES[case](name): shard for name, shard in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    (note,) = open_graph(folder).notes
    assert "read under other names" in note


@pytest.mark.parametrize(("target", "quant"), [("gguf", "Q8_0"), ("onnx", "q4"), ("mlx", "8bit")])
def test_other_names_give_the_same_bytes(
    target: str, quant: str, tiny_dense: Path, dense: Path, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(tiny_dense, tmp_path / "plain"))
    expected = converted(plain, tmp_path / "a", target, quant)

    def change(tensors: Tensors) -> None:
        tensors[HEAD] = tensors.pop(EMBED)
        rename(tensors, PREFIXES["nested"])

    edit(dense, change)
    (dense / WEIGHTS).rename(dense / "merged.safetensors")
    assert converted(dense, tmp_path / "b", target, quant) == expected


def test_a_fault_of_a_value_is_told_by_the_name_in_the_file(dense: Path, sentence_of: Callable[..., str]) -> None:
    values = np.zeros((256, 128), np.float32)
    values[3, 5] = np.inf
    edit(dense, lambda tensors: tensors.update({GATE: float32(values)}))
    edit(dense, lambda tensors: rename(tensors, PREFIXES["data parallel"]))
    assert f"tensor 'module.{GATE}' holds inf at [3, 5]" in sentence_of(dense)


def test_two_names_for_one_tensor(dense: Path, sentence_of: Callable[..., str]) -> None:
    edit(dense, lambda tensors: tensors.update({GATE.replace(".0.", ".0._orig_mod."): tensors[GATE]}))
    sentence = sentence_of(dense)
    assert f"'{GATE}'" in sentence
    assert "are one tensor of the model under two names" in sentence


def test_only_the_head_of_a_tied_pair(dense: Path) -> None:
    plain = open_graph(dense).head.read()
    edit(dense, lambda tensors: tensors.update({HEAD: tensors.pop(EMBED)}))
    graph = open_graph(dense)
    assert graph.is_tied
    assert np.array_equal(graph.head.read(), plain)
    assert graph.notes == (f"of the tied pair only '{HEAD}' is stored: it is read as the embedding too",)


def test_only_the_head_of_an_untied_pair(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    folder = make_checkpoint(tmp_path / "model", dense_config(tie_embedding=False))
    edit(folder, lambda tensors: tensors.pop(EMBED))
    assert f"tensor '{EMBED}' is missing" in sentence_of(folder)


def test_shards_without_an_index(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    folder = make_checkpoint(tmp_path / "model", moe_config(), shards=3)
    expected = [weight.view.read().tobytes() for weight in open_graph(folder).weights()]
    (folder / INDEX).unlink()
    graph = open_graph(folder)
    assert [weight.view.read().tobytes() for weight in graph.weights()] == expected
    assert graph.notes == (f"the 3 shards are read by their names: there is no {INDEX}",)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert sentence_of(folder).endswith(f"{folder}: missing model-00002-of-00003.safetensors")


@pytest.mark.parametrize("name", ["foo.safetensors", "consolidated.safetensors", "model-00001-of-00001.safetensors"])
def test_one_file_of_another_name(name: str, dense: Path) -> None:
    (dense / WEIGHTS).rename(dense / name)
    (note,) = open_graph(dense).notes
    assert (name in note) != ("of-00001" in name)


def test_an_index_of_a_variant(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", moe_config(), shards=2)
    (folder / INDEX).rename(folder / "model.fp16.safetensors.index.json")
    assert open_graph(folder).notes == ()


def test_several_unrelated_files(dense: Path, sentence_of: Callable[..., str]) -> None:
    (dense / WEIGHTS).rename(dense / "a.safetensors")
    shutil.copy(dense / "a.safetensors", dense / "b.safetensors")
    sentence = sentence_of(dense)
    assert f"holds a.safetensors, b.safetensors, and neither {WEIGHTS} nor an index says which" in sentence


# --- what else is given as MODEL


def test_a_package_is_a_folder_and_no_checkpoint(tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    package = tmp_path / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Manifest.json").write_text("{}")
    said = "found model.mlpackage: a Core ML model, made from a checkpoint; convert the checkpoint itself"
    assert said in sentence_of(package)
    assert said in sentence_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnx/model_q4.onnx", "an ONNX model, made from a checkpoint"),
        ("model.pte", "an ExecuTorch program, made from a checkpoint"),
        ("pytorch_model.bin", "pickle weights are refused, save as safetensors"),
        ("weights.npz", "arrays of numpy or MLX: save as safetensors"),
        ("model.litertlm", "a LiteRT model, made from a checkpoint"),
    ],
)
@pytest.mark.parametrize("config", [False, True], ids=["bare", "with config.json"])
def test_folders_of_other_files(
    name: str, said: str, config: bool, tmp_path: Path, sentence_of: Callable[..., str]
) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    (tmp_path / "model" / "training_args.bin").write_bytes(b"PK")
    if config:
        configure(tmp_path / "model", **dense_config())
    sentence = sentence_of(tmp_path / "model")
    assert f"(found {name}: {said}" in sentence
    assert (f"missing {WEIGHTS}" if config else "config.json: not found") in sentence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.gguf", "x.gguf: is truncated"),
        ("x.onnx", "is a file (an ONNX model, made from a checkpoint"),
        ("x.bin", "is a file (pickle weights are refused"),
        (WEIGHTS, "is a file; name the folder that holds config.json and the safetensors: "),
        ("config.json", "is a file; name the folder that holds config.json and the safetensors: "),
    ],
)
def test_files_given_as_the_model(name: str, said: str, tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    (tmp_path / name).write_bytes(b"GGUF" if name.endswith(".gguf") else b"x")
    assert said in sentence_of(tmp_path / name)


def test_a_folder_above_the_checkpoint(tiny_dense: Path, tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    shutil.copytree(tiny_dense, tmp_path / "run" / "checkpoint-500")
    assert sentence_of(tmp_path / "run").endswith(f"; {tmp_path / 'run' / 'checkpoint-500'} has one")


# --- many tensors, one cause

CAUSES: dict[str, tuple[dict[str, Any], str]] = {
    "fewer layers": (
        {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
        "the config describes 2 layers, the tensors are of 4: the config is another model's",
    ),
    "more layers": (
        {"num_hidden_layers": 9, "layer_types": ["conv", "full_attention"] * 2 + ["conv"] * 5},
        "the config describes 9 layers, the tensors are of 4: the weights are another model's, or not all",
    ),
    "experts": ({"num_experts": 16}, "the config describes 16 experts, the tensors are of 8: "),
    "width": ({"hidden_size": 256}, "tensors have the wrong shape, such as: tensor 'model.embed_tokens.weight'"),
    "dense": ({"model_type": "lfm2", "block_auto_adjust_ff_dim": False}, "the config is a dense model's, the tensors have 8 experts a layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUSES)
def test_a_config_of_another_size_is_one_sentence(
    case: str, tiny_moe: Path, tmp_path: Path, sentence_of: Callable[..., str]
) -> None:
    folder = Path(shutil.copytree(tiny_moe, tmp_path / "model"))
    fields, said = CAUSES[case]
    configure(folder, **fields)
    assert said in sentence_of(folder)


def test_weights_of_another_architecture(dense: Path, sentence_of: Callable[..., str]) -> None:
    (dense / WEIGHTS).unlink()
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(40)]
    write_tensors(dense / WEIGHTS, {name: float32(np.ones((2, 2))) for name in names})
    assert "holds none of the 40 tensors that the config describes: found 'transformer.h." in sentence_of(dense)


def test_one_shard_as_the_whole(tiny_moe_sharded: Path, tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    folder = Path(shutil.copytree(tiny_moe_sharded, tmp_path / "model"))
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00003.safetensors").rename(folder / WEIGHTS)
    assert "tensors are missing, such as '" in sentence_of(folder) or "layers, the tensors are of" in sentence_of(
        folder
    )


def test_an_index_of_other_shards(tiny_moe_sharded: Path, tmp_path: Path, sentence_of: Callable[..., str]) -> None:
    folder = Path(shutil.copytree(tiny_moe_sharded, tmp_path / "model"))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {f"other.{name}": shard for name, shard in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    assert f"tensors are not where {INDEX} places them, which is of other files, such as: " in sentence_of(folder)


# --- plans


@pytest.mark.parametrize(
    ("target", "quants"),
    [("gguf", "F32,Q8_0,Q4_K_M"), ("onnx", "fp32,q4"), ("mlx", "8bit,4bit")],
)
def test_a_plan_is_what_is_written_whatever_the_config_says(
    target: str, quants: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of float32 under a config of bfloat16, as trainers leave them."""
    folder = make_checkpoint(tmp_path / "model", dense_config(), dtype="float32")
    configure(folder, torch_dtype="bfloat16")
    for quant in quants.split(","):
        capsys.readouterr()
        arguments = [str(folder), "--target", target, "--quant", quant]
        assert main(["plan", *arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main([*arguments, "--out", str(tmp_path / quant), "--no-validate"]) == 0
        each = found[0] if isinstance(found, list) else found.get("plans", [found])[0]
        planned = {file["path"]: file["bytes"] for file in each["files"]}
        assert {path: (tmp_path / quant / path).stat().st_size for path in planned} == planned


def test_a_plan_for_executorch_is_that_of_its_conversion(tmp_path: Path) -> None:
    """Its bytes are an estimate, since the program is not lowered yet; what the weights are in decides them too."""
    folder = make_checkpoint(tmp_path / "model", dense_config(), dtype="float32")
    configure(folder, torch_dtype="bfloat16")
    planned, written = (
        plan(open_model(str(folder), weights=weights), target="executorch", quant="8da4w,fp32")
        for weights in (False, True)
    )
    assert [each.to_json() for each in planned] == [each.to_json() for each in written]
    assert {tensor.view.dtype.value for each in planned for tensor in each.tensors if tensor.role} == {"F32"}


@pytest.mark.parametrize("damage", ["no weights", "missing shard", "pointers"])
def test_a_plan_needs_the_config_only(
    damage: str, tiny_moe_sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_moe_sharded, tmp_path / "tiny-moe-sharded"))
    arguments = ["--target", "gguf", "--quant", "Q8_0", "--json"]
    assert main(["plan", str(folder), *arguments]) == 0
    expected = capsys.readouterr().out
    for path in sorted(folder.glob("*.safetensors"))[:1] if damage == "missing shard" else folder.glob("model*"):
        path.unlink()
        if damage == "pointers" and path.suffix == ".safetensors":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert main(["plan", str(folder), *arguments]) == 0
    assert capsys.readouterr().out == expected


# --- hub


@pytest.mark.parametrize("model", ["folder", "bundled:dense"])
def test_a_revision_of_what_has_none(
    model: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(tiny_dense) if model == "folder" else model
    arguments = [name, "--target", "gguf", "--quant", "Q8_0", "--out", str(tmp_path / "out"), "--revision", "v2"]
    assert main(arguments) == 2
    assert "--revision v2: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_revision_that_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["plan", "LiquidAI/LFM2-None", "--target", "gguf", "--revision", "v9", "--offline"]) == 8
    said = capsys.readouterr().err
    assert "LiquidAI/LFM2-None: its revision 'v9' (--revision) is not in the local cache" in said
    assert "'hf download LiquidAI/LFM2-None --revision v9'" in said


def test_a_repository_of_artifacts(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "LFM2-Q4_K_M.gguf").write_bytes(b"GGUF")
    with serve(tmp_path / "repo", "org/LFM2-GGUF") as endpoint:
        command = [sys.executable, "-m", "lfm_convert", "plan", "org/LFM2-GGUF", "--target", "gguf"]
        variables = environment(tmp_path, endpoint)
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 5, done.stderr
    assert (
        "org/LFM2-GGUF: holds no checkpoint (found LFM2-Q4_K_M.gguf: a GGUF file: name the file itself)" in done.stderr
    )


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """The snapshot of an artifact as a hub cache lays it out: every file a link to a blob named by its hash."""

    def lay_out(model: str, target: str, quant: str) -> Path:
        folder = tmp_path / "models--org--x" / "snapshots" / "0123abc"
        assert main([model, "--target", target, "--quant", quant, "--out", str(folder), "--no-validate"]) == 0
        blobs = folder.parents[1] / "blobs"
        blobs.mkdir()
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            path.replace(blob)
            path.symlink_to(os.path.relpath(blob, path.parent))
        return folder

    return lay_out


@pytest.mark.parametrize(("model", "target", "quant"), [("dense", "gguf", "Q8_0"), ("moe", "onnx", "q4")])
def test_artifacts_linked_into_a_hub_cache(
    model: str, target: str, quant: str, few: Path, cached: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They run in their runtimes. A blob that is not what the manifest says is refused by its hash."""
    folder = cached(f"bundled:{model}", target, quant)
    arguments = ["validate", str(folder), "--reference", f"bundled:{model}", "--prompts", str(few)]
    assert main(arguments) == 0, capsys.readouterr().err
    largest = max((p for p in folder.rglob("*") if p.is_symlink()), key=lambda p: p.stat().st_size)
    with largest.resolve().open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(b"\x55" * 64)
    capsys.readouterr()
    assert main(arguments) == 5
    assert f"{largest.name}' has sha256" in capsys.readouterr().err.replace("\n", " ")
