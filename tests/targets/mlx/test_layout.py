"""The folder is what mlx-lm, mlx-swift and LM Studio load; planned to the byte, the same bytes always."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from lfm_convert.convert import convert, plan
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.mlx import layout
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, get_target
from support.artifacts import write_artifact
from support.checkpoints import dense_25_config, dense_config, make_checkpoint, moe_config
from support.refusals import refused


@pytest.fixture
def artifact(moe_graph: WeightGraph, tmp_path: Path) -> Artifact:
    return write_artifact(moe_graph, "mlx", "4bit", tmp_path)


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    n_bytes = int.from_bytes(data[:8], "little")
    assert n_bytes % 8 == 0
    return json.loads(data[8 : 8 + n_bytes])


def config_of(artifact: Artifact) -> dict:
    return json.loads(artifact.path.read_text())


def test_files(artifact: Artifact) -> None:
    assert sorted(file.name for file in artifact.path.parent.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert artifact.path.parent.name == "tiny-moe-4bit"


def test_header(artifact: Artifact) -> None:
    header = header_of(artifact.path.with_name("model.safetensors"))
    assert header.pop("__metadata__") == {"format": "mlx"}
    assert list(header) == sorted(header)
    for name, entry in header.items():
        width = {"U32": 4, "F32": 4, "BF16": 2}[entry["dtype"]]
        assert entry["data_offsets"][0] % width == 0, name
    shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    experts = "model.layers.1.feed_forward."
    assert shapes[experts + "switch_mlp.gate_proj.weight"] == ("U32", [8, 64, 16])
    assert shapes[experts + "switch_mlp.down_proj.scales"] == ("BF16", [8, 128, 1])
    assert shapes[experts + "gate.weight"] == ("U32", [8, 32])
    assert shapes[experts + "expert_bias"] == ("F32", [8])
    assert shapes["model.layers.0.feed_forward.gate_proj.biases"] == ("BF16", [256, 2])
    assert shapes["model.layers.0.conv.conv.weight"] == ("BF16", [128, 3, 1])
    assert shapes["model.layers.0.operator_norm.weight"] == ("BF16", [128])
    assert not any("lm_head" in name or "experts." in name for name in header)


def test_quantization_settings(artifact: Artifact) -> None:
    config = config_of(artifact)
    assert list(config) == sorted(config)
    settings = config["quantization"]
    assert config["quantization_config"] == settings
    assert {key: settings.pop(key) for key in ("group_size", "bits", "mode")} == {
        "group_size": 64, "bits": 4, "mode": "affine",
    }  # fmt: skip
    router = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert settings == {f"model.layers.{layer}.feed_forward.gate": router for layer in (1, 2, 3)}


def test_floats_have_no_settings(dense_graph: WeightGraph, tmp_path: Path) -> None:
    assert "quantization" not in config_of(write_artifact(dense_graph, "mlx", "bf16", tmp_path))


@pytest.mark.parametrize("config", [dense_config(), dense_25_config()], ids=["adjusted", "as-is"])
def test_dense_sizes_are_resolved(config: dict, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", config))
    written = config_of(write_artifact(graph, "mlx", "8bit", tmp_path))
    assert (written["block_dim"], written["block_ff_dim"], written["block_auto_adjust_ff_dim"]) == (128, 256, False)
    assert {"block_multiple_of", "block_ffn_dim_multiplier"} <= written.keys()


def test_index(artifact: Artifact) -> None:
    weights = artifact.path.with_name("model.safetensors")
    index = json.loads(weights.with_name("model.safetensors.index.json").read_text())
    arrays = set(header_of(weights)) - {"__metadata__"}
    assert index["weight_map"] == dict.fromkeys(sorted(arrays), "model.safetensors")
    header_bytes = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert index["metadata"]["total_size"] == weights.stat().st_size - header_bytes


def test_shards(moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_artifact(moe_graph, "mlx", "8bit", tmp_path / "whole")
    monkeypatch.setattr(layout, "SHARD_BYTES", 100_000)
    cut = write_artifact(moe_graph, "mlx", "8bit", tmp_path / "cut")
    shards = sorted(file.name for file in cut.files if file.suffix == ".safetensors")
    n = len(shards)
    assert n > 3
    assert shards == [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    index = json.loads(cut.path.with_name("model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    target = get_target("mlx")
    expected, found = target.read(whole), target.read(cut)
    assert all((found[address].read() == expected[address].read()).all() for address in expected)


def test_tokenizer_class_is_one_that_everybody_knows(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", dense_config())
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "TokenizersBackend"}))
    artifact = write_artifact(open_graph(source), "mlx", "8bit", tmp_path)
    written = json.loads(artifact.path.with_name("tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_model_card(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", dense_config())
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: lfm1.0\ntags:\n- liquid\n---\n# Base\n")
    card = write_artifact(open_graph(source), "mlx", "8bit", tmp_path).path.with_name("README.md").read_text()
    front = card.split("---")[1].splitlines()[1:]
    assert front == [
        "library_name: mlx", "pipeline_tag: text-generation", "license: other", "license_name: lfm1.0", "tags:", "- mlx",
    ]  # fmt: skip
    assert "mlx_lm.generate" in card


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_mode_honours_umask(moe_graph: WeightGraph, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        artifact = write_artifact(moe_graph, "mlx", "8bit", tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in artifact.files} == {0o640}


@pytest.mark.parametrize("options", [{}, {"refine": True}], ids=["exact", "refined"])
def test_same_bytes_for_any_workers_and_ranges(moe_graph: WeightGraph, tmp_path: Path, options: dict) -> None:
    found = []
    for index, (jobs, range_bytes) in enumerate([(1, 4 << 20), (2, 3000), (4, 70_001)]):
        target = get_target("mlx").with_options(options)
        run = Execution(jobs=jobs, range_bytes=range_bytes)
        artifact = write_artifact(moe_graph, target, "mixed_4_8", tmp_path / str(index), run)
        found.append({file.name: file.read_bytes() for file in artifact.files})
    assert all(each == found[0] for each in found)


def test_fused_experts_give_the_same_values(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """The form transformers 5 saves, which mlx_lm.convert refuses."""
    fused = open_graph(make_checkpoint(tmp_path / "fused", moe_config(), fused_experts=True))
    files = [write_artifact(g, "mlx", "4bit", tmp_path / g.name).files for g in (moe_graph, fused)]
    data = [next(f for f in each if f.name == "model.safetensors").read_bytes() for each in files]
    assert data[0] == data[1]


def test_quants_have_folders_of_their_own(tiny_moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(str(tiny_moe), target="mlx", quant="8bit,4bit", out=out, validate_after=False)
    convert(str(tiny_moe), target="mlx", quant="4bit", out=out, options={"refine": True}, validate_after=False)
    artifacts = find_artifacts(out)
    names = sorted(a.path.parent.name for a in artifacts)
    assert names == ["tiny-moe-4bit", "tiny-moe-4bit-refined", "tiny-moe-8bit"]
    (refined,) = [a for a in artifacts if a.entry["notes"]]
    assert "refined" in refined.entry["notes"][0]
    assert {t["encoding"] for t in refined.entry["tensors"] if t["role"] == "embed"} == {"affine4_g64_bf16_refined"}


# GiB, as published; the 4-bit sizes fit a wider embedding only.
@pytest.mark.parametrize(
    ("quant", "gib"), [("8bit", 2.67), ("4bit-e6", 1.47), ("5bit-e6", 1.758), ("mxfp4-e8", 1.46), ("bf16", 5.02)]
)
def test_planned_size_of_the_published_model(published_configs: Path, tmp_path: Path, quant: str, gib: float) -> None:
    shutil.copy(published_configs / "lfm2.5-2.6b.json", tmp_path / "config.json")
    (planned,) = plan(str(tmp_path), target="mlx", quant=quant)
    assert planned.total_bytes / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_plan_needs_only_a_config(tmp_path: Path, dtype: str) -> None:
    source = make_checkpoint(tmp_path / "a" / "model", moe_config(), dtype=dtype)
    alone = tmp_path / "b" / "model"
    alone.mkdir(parents=True)
    shutil.copy(source / "config.json", alone)
    for quant in ("8bit", "mxfp4", "bf16"):
        (from_config,), (from_weights,) = (plan(str(f), target="mlx", quant=quant) for f in (alone, source))
        assert from_config.to_json()["tensors"] == from_weights.to_json()["tensors"]


def test_rows_a_group_does_not_divide_stay_float(tmp_path: Path) -> None:
    config = moe_config(hidden_size=192, moe_intermediate_size=96, num_attention_heads=6)
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", config))
    planned = get_target("mlx").plan(graph, "4bit")
    assert [f.tensor for f in planned.fallbacks] == [
        f"model.layers.{layer}.feed_forward.switch_mlp.down_proj.weight" for layer in (1, 2, 3)
    ]
    assert {(f.wanted, f.used) for f in planned.fallbacks} == {("affine4_g64_bf16", "BF16")}
    assert "rows of 96 are not a multiple of the block of 64" in planned.fallbacks[0].reason
    with refused("--strict", "switch_mlp.down_proj.weight", error=UsageError):
        planned.refuse_fallbacks()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (dense_config(tie_embedding=False), "with a head other than the embedding"),
        (dense_config(head_dim=64), "4 heads of 64 with hidden_size 128"),
        (dense_config(attention=()), "layers that are all short convolution"),
    ],
    ids=["untied", "head-dim", "no-attention"],
)
def test_what_mlx_lm_cannot_express(config: dict, sentence: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, config))
    with refused(sentence, "choose another target", error=UsageError):
        get_target("mlx").plan(graph, "8bit")
