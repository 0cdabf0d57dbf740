"""From a checkpoint to published artifacts: same bytes always, nothing lost ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lfm_convert.convert import convert, plan, validate
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.graph.errors import InputError, UsageError
from support.checkpoints import make_checkpoint, moe_config


def _hashes(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "lfm-convert.json").read_text())
    return {file["path"]: file["sha256"] for entry in manifest["artifacts"] for file in entry["files"]}


@pytest.mark.parametrize(("target", "quant"), [("onnx", "q4f16"), ("onnx", "fp32"), ("gguf", "Q4_0"), ("gguf", "BF16")])
def test_same_bytes_for_any_workers_and_ranges(tiny_moe: Path, tmp_path: Path, target: str, quant: str) -> None:
    settings = [(1, 4 << 20), (2, 4 << 20), (2, 3000), (4, 70_001)]
    found = []
    for index, (jobs, range_bytes) in enumerate(settings):
        out = tmp_path / str(index)
        convert(
            str(tiny_moe), target=target, quant=quant, out=out, jobs=jobs, range_bytes=range_bytes, validate_after=False
        )
        found.append((_hashes(out), (out / "lfm-convert.json").read_bytes()))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("target", ["onnx", pytest.param("gguf", marks=pytest.mark.slow)])
def test_plan_is_what_is_written(tiny_moe: Path, tmp_path: Path, target: str) -> None:
    done = convert(str(tiny_moe), target=target, quant="all", out=tmp_path / "out", validate_after=False)
    planned = plan(str(tiny_moe), target=target, quant="all")
    assert [p.to_json() for p in planned] == [p.to_json() for p in done.plans]
    for each in planned:
        for file in each.files:
            assert (tmp_path / "out" / file.path).stat().st_size == file.nbytes


def test_plan_needs_only_a_config(tiny_moe: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_moe / "config.json", tmp_path)
    (from_config,) = plan(str(tmp_path), target="onnx", quant="q4")
    (from_weights,) = plan(str(tiny_moe), target="onnx", quant="q4")
    assert from_config.to_json()["tensors"] == from_weights.to_json()["tensors"]


def test_quants_join_one_folder(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    convert(str(tiny_moe), target="onnx", quant="fp32", out=tmp_path / "out", validate_after=False)
    assert [a.quant for a in find_artifacts(tmp_path / "out")] == ["fp32", "q4"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    chunks = config["transformers.js_config"]["use_external_data_format"]
    assert chunks == {"model.onnx": 1, "model_q4.onnx": 1}


def test_existing_artifact_needs_overwrite(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    before = _hashes(tmp_path / "out")
    with pytest.raises(UsageError, match="already exists; --overwrite"):
        convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", overwrite=True, validate_after=False)
    assert _hashes(tmp_path / "out") == before


def test_folder_of_another_checkpoint_is_refused(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    other = make_checkpoint(tmp_path / "other", moe_config(), seed=1)
    with pytest.raises(UsageError, match="holds artifacts of another checkpoint"):
        convert(str(other), target="onnx", quant="fp32", out=tmp_path / "out", overwrite=True, validate_after=False)
    convert(str(other), target="onnx", quant="q4", out=tmp_path / "out", overwrite=True, validate_after=False)


def test_source_changed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfm_convert.targets.onnx.target import OnnxTarget

    source = make_checkpoint(tmp_path / "source", moe_config())
    shared_files = OnnxTarget.shared_files

    def meddle(*arguments):  # the last step before publishing
        (source / "model.safetensors").touch()
        return shared_files(*arguments)

    monkeypatch.setattr(OnnxTarget, "shared_files", meddle)
    with pytest.raises(InputError, match=r"model\.safetensors: changed while"):
        convert(str(source), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    assert not (tmp_path / "out").exists()


def test_manifest_names_sources_and_tensors(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4f16", out=tmp_path / "out", validate_after=False)
    manifest = json.loads((tmp_path / "out" / "lfm-convert.json").read_text())
    assert manifest["source"]["name"] == tiny_moe.name
    assert {f["path"] for f in manifest["source"]["files"]} == {"config.json", "model.safetensors", "tokenizer.json"}
    (entry,) = manifest["artifacts"]
    assert entry["main_file"] == "onnx/model_q4f16.onnx"
    routers = [t for t in entry["tensors"] if t["role"] == "router"]
    assert routers
    assert {t["encoding"] for t in routers} == {"F32"}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: p.unlink(), r"'onnx/model_q4\.onnx_data' is missing"),
        (lambda p: p.write_bytes(b""), r"'onnx/model_q4\.onnx_data' has 0 bytes: expected"),
    ],
    ids=["missing", "truncated"],
)
def test_damaged_artifact_is_named(tiny_moe: Path, tmp_path: Path, damage, sentence: str) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    damage(tmp_path / "out" / "onnx" / "model_q4.onnx_data")
    with pytest.raises(InputError, match=sentence):
        find_artifacts(tmp_path / "out" / "onnx" / "model_q4.onnx")


def test_a_flipped_bit_is_found_before_anything_runs(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    data = tmp_path / "out" / "onnx" / "model_q4.onnx_data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"model_q4\.onnx_data' has sha256"):
        validate([tmp_path / "out"], reference=str(tiny_moe))


def test_manifest_cannot_point_outside(tiny_moe: Path, tmp_path: Path) -> None:
    convert(str(tiny_moe), target="onnx", quant="q4", out=tmp_path / "out", validate_after=False)
    path = tmp_path / "out" / "lfm-convert.json"
    path.write_text(path.read_text().replace("onnx/model_q4.onnx_data", "../../model_q4.onnx_data"))
    with pytest.raises(InputError, match="lies outside the folder"):
        find_artifacts(tmp_path / "out")
