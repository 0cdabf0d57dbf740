"""An artifact is compared with the checkpoint it was made from, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.pipeline import convert
from support.safetensors_files import Tensor, bfloat16, edit_tensors


@pytest.fixture(scope="module")
def out(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    convert(str(tiny_dense), target="gguf", quant="Q8_0", out=folder, validate_after=False)
    return folder


def other(tiny_dense: Path, folder: Path, *, share: float) -> Path:
    """The same model, but for one matrix."""
    shutil.copytree(tiny_dense, folder)

    def change(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.feed_forward.w1.weight"
        noise = np.random.default_rng(5).normal(size=tensors[name].shape).astype(np.float32)
        tensors[name] = bfloat16(noise * np.float32(share))

    edit_tensors(folder / "model.safetensors", change)
    return folder


@pytest.fixture
def validate(few: Path) -> Callable[..., int]:
    def run(out: Path, *options: object) -> int:
        return main(["validate", str(out), "--prompts", str(few), *map(str, options)])

    return run


def test_its_own_checkpoint_under_any_name(
    validate: Callable[..., int], out: Path, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(tiny_dense, tmp_path / "elsewhere"))
    assert validate(Path(shutil.copytree(out, tmp_path / "out")), "--reference", copied) == 0
    assert "another checkpoint" not in capsys.readouterr().out


def test_another_fine_tune_is_named(
    validate: Callable[..., int], out: Path, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    tuned = other(tiny_dense, tmp_path / "tuned", share=0.001)
    report = tmp_path / "report.json"
    assert validate(folder, "--reference", tuned, "--json", report) == 3
    (found,) = json.loads(report.read_text())["artifacts"]
    assert found["verdict"] == "fail"
    assert "made from another checkpoint than tuned" in found["message"]
    assert "'model.safetensors' was sha256" in found["message"] and "--other-reference" in found["message"]
    (artifact,) = find_artifacts(folder)
    assert artifact.entry["validation"] is None, "the reference was wrong, which the manifest does not blame it for"


def test_another_checkpoint_on_purpose(
    validate: Callable[..., int], out: Path, tiny_dense: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    tuned = other(tiny_dense, tmp_path / "tuned", share=0.001)
    report = tmp_path / "report.json"
    validate(folder, "--reference", tuned, "--other-reference", "--json", report)
    (found,) = json.loads(report.read_text())["artifacts"]
    assert found["metrics"] is not None


def test_without_a_reference_the_source_must_be_at_hand(
    validate: Callable[..., int],
    out: Path,
    tiny_dense: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert validate(out) == 2
    assert "--reference is needed: the artifacts were made from tiny-dense" in capsys.readouterr().err
    monkeypatch.chdir(tiny_dense)
    assert validate(Path(shutil.copytree(out, tmp_path / "out"))) == 0


def test_a_bundled_model_is_always_at_hand(
    validate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert("bundled:dense", target="gguf", quant="F16", out=tmp_path / "out", validate_after=False)
    assert validate(tmp_path / "out") == 0
