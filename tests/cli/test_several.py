"""Several targets in one command: quants and options go to those that have them, and nothing is half begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.several import shares
from lfm_convert.graph.errors import UsageError
from lfm_convert.targets.target import target_names


def test_each_quant_goes_to_every_target_that_has_it() -> None:
    found = shares(["gguf,onnx", "coreml"], ["Q4_0", "fp16,q4f16"], {"coreml_split": 5})
    assert {share.target: share.quants for share in found} == {
        "gguf": ("Q4_0",),
        "onnx": ("fp16", "q4f16"),
        "coreml": ("fp16",),
    }


def test_options_go_to_the_targets_that_have_them() -> None:
    found = {share.target: share.options for share in shares(["gguf", "onnx"], None, {"imatrix": "m", "pure": True})}
    assert found == {"gguf": {"imatrix": "m", "pure": True}, "onnx": {"imatrix": "m"}}


def test_all_targets_with_their_defaults() -> None:
    found = shares(["all"])
    assert tuple(share.target for share in found) == target_names()
    assert all(share.quants is None for share in found)
    assert {share.quants for share in shares(["all"], ["all"])} == {("all",)}


@pytest.mark.parametrize(
    ("targets", "quants", "options", "said"),
    [
        (["gguf,onnx"], ["Q4_0"], {}, "none of the quants is one of onnx's"),
        (["gguf,onnx"], ["Q4_0,q4,nope"], {}, "quant 'nope' is none of gguf, onnx"),
        (["gguf,onnx"], None, {"coreml_split": 1}, "none of gguf, onnx has an option --coreml-split"),
        (["all,nope"], None, {}, "unknown target 'nope'"),
        (["gguf,nope"], None, {}, "unknown target 'nope'"),
        (["gguf,"], None, {}, "unknown target ''"),
    ],
)
def test_what_is_nobodys_is_refused(targets: Any, quants: Any, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shares(targets, quants, options)


def test_two_targets_in_one_command(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a folder of its own, the checkpoint run once, one report; the bytes are those of a command for each."""
    out, report = tmp_path / "out", tmp_path / "report.json"
    line = [str(tiny_dense), "-t", "gguf,onnx", "-q", "F32,fp32", "--out", str(out), "--json", str(report)]
    assert main([*line, "--suite", "smoke"]) == 0
    said = capsys.readouterr().err
    assert (said.count("running the checkpoint itself"), said.count("is taken from")) == (1, 1)
    found = json.loads(report.read_text())
    assert [artifact["verdict"] for artifact in found["validation"]["artifacts"]] == ["pass", "pass"]
    for artifact, target in zip(found["artifacts"], ("gguf", "onnx"), strict=True):
        alone = tmp_path / target
        quant = artifact["quant"]
        assert main([str(tiny_dense), "-t", target, "-q", quant, "--out", str(alone), "--no-validate"]) == 0
        folder = out / Path(artifact["path"]).parts[0]
        for file in artifact["files"]:
            assert (out / file).read_bytes() == (alone / (out / file).relative_to(folder)).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--outfile", "a.gguf"], "--outfile a.gguf: is one file, for 2 targets"),
        (["--max-size", "1KB"], "over"),
        ([], "already exists"),
    ],
)
def test_nothing_is_begun_that_cannot_be_ended(
    more: list[str], said: str, tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What is in the way of the second target stops the first."""
    monkeypatch.chdir(tmp_path)
    line = [str(tiny_dense), "-q", "fp32,F32", "--no-validate"]
    assert more or main([str(tiny_dense), "-t", "onnx", "-q", "fp32", "--no-validate"]) == 0
    before = sorted(tmp_path.rglob("*"))
    assert main([*line, "-t", "gguf", "-t", "onnx", *more]) in (2, 4)
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_of_several_targets(tiny_dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_dense), "-t", "gguf,mlx", "--json"]) == 0
    assert [each["target"] for each in json.loads(capsys.readouterr().out)["plans"]] == ["gguf", "mlx"]
