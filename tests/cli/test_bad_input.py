"""Each kind of bad input: its exit code, its sentence, and nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from support.safetensors_files import Tensor, edit_tensors, float32

Damage = Callable[[Path], object]
GATE = "model.layers.0.feed_forward.w1.weight"


def _edit_config(**fields: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def _edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    return lambda folder: edit_tensors(folder / "model.safetensors", change)


def _poison(value: float) -> Damage:
    values = np.zeros((256, 128), np.float32)
    values[3, 5] = value
    return _edit_tensors(lambda tensors: tensors.update({GATE: float32(values)}))


def _grow_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["zzzzzz"] = 512
    path.write_text(json.dumps(data))


SHARD_CASES: dict[str, tuple[Damage, str]] = {
    "missing shard": (lambda f: _shard(f).unlink(), "missing model-00002-of-00003.safetensors"),
    "truncated shard": (lambda f: _shard(f).write_bytes(_shard(f).read_bytes()[:-100]), "truncated: expected"),
    "LFS pointer": (
        lambda f: _shard(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "is a Git LFS pointer",
    ),
}
CASES: dict[str, tuple[Damage, str]] = {
    **SHARD_CASES,
    "missing tensor": (
        _edit_tensors(lambda t: t.pop(GATE)),
        f"tensor '{GATE}' is missing (expected shape [256, 128])",
    ),
    "extra tensor": (
        _edit_tensors(lambda t: t.update({"model.layers.9.w": float32(np.zeros((2, 2)))})),
        "tensor 'model.layers.9.w' is not part of the model",
    ),
    "wrong shape": (
        _edit_tensors(lambda t: t.update({GATE: float32(np.zeros((255, 128)))})),
        f"tensor '{GATE}' has the wrong shape: expected [256, 128], found [255, 128]",
    ),
    "unknown architecture": (_edit_config(model_type="gpt2"), "model_type is 'gpt2', expected one of lfm2, lfm2_moe"),
    "NaN": (_poison(float("nan")), f"tensor '{GATE}' holds nan at [3, 5]"),
    "infinity": (_poison(float("-inf")), f"tensor '{GATE}' holds -inf at [3, 5]"),
    "contradiction": (
        _edit_config(rope_parameters={"rope_theta": 5e6, "rope_type": "default"}),
        "rope_theta is 1000000.0 but rope_parameters.rope_theta is 5000000.0: these must agree",
    ),
    "large tokenizer": (_grow_tokenizer, "expected ids below vocab_size 512"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_damaged_checkpoint(
    case: str, target: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, sentence = CASES[case]
    source = request.getfixturevalue("tiny_moe_sharded" if case in SHARD_CASES else "tiny_moe")
    folder = shutil.copytree(source, tmp_path / "model")
    damage(folder)
    code = main([str(folder), "--target", target, "--quant", "all", "--out", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert (code, captured.out) == (5, "")
    assert sentence in captured.err
    assert str(folder) in captured.err
    assert captured.err.splitlines()[-1].startswith("lfm-convert: ")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_existing_artifact_survives(tiny_moe: Path, tmp_path: Path) -> None:
    """A second run that meets a NaN half way leaves the first run's files as they were."""
    folder = shutil.copytree(tiny_moe, tmp_path / "model")
    arguments = [str(folder), "--target", "gguf", "--quant", "Q8_0", "--out", str(tmp_path / "out"), "--no-validate"]
    assert main(arguments) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    _poison(float("nan"))(folder)
    assert main([*arguments, "--overwrite"]) == 5
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--target", "tflite"], 2, "unknown target 'tflite': expected one of gguf, onnx"),
        (["--target", "onnx", "--quant", "Q4_K"], 2, "unknown quant 'Q4_K' for target onnx: expected one of fp32, fp16, q8, q4, q4_mixed, q4f16"),
        (["--target", "gguf", "--quant", "q4f16"], 2, "unknown quant 'q4f16' for target gguf: expected one of F32, F16, BF16, Q8_0"),
        (["--target", "onnx", "--max-memory", "many"], 2, "size 'many' is not understood"),
        (["--target", "onnx", "--max-memory", "1MB"], 2, "--max-memory 1.00 MB is too little: at least"),
        (["--target", "onnx", "--jobs", "0"], 2, "Invalid value for '--jobs'"),
        (["--quant", "q4"], 2, "Missing option '--target'"),
    ],
)  # fmt: skip
def test_bad_request(
    arguments: list[str], code: int, sentence: str, tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_moe), *arguments, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_no_space(
    tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert main([str(tiny_moe), "--target", "onnx", "--quant", "q4", "--out", str(tmp_path / "out")]) == 7
    assert "and 1.00 kB is free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_extra(
    tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main([str(tiny_moe), "--target", "onnx", "--quant", "q4", "--out", str(tmp_path / "out")]) == 6
    assert (
        "needs the package 'onnx', which is not installed: pip install \"lfm-convert[onnx]\"" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_hold_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from support.checkpoints import make_checkpoint, moe_config

    folder = make_checkpoint(tmp_path / "model", moe_config(norm_topk_prob=False))
    assert main([str(folder), "--target", "gguf", "--quant", "F32", "--out", str(tmp_path / "out")]) == 2
    assert "norm_topk_prob" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_half_precision_overflow_names_the_tensor(
    tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_moe, tmp_path / "model")
    _poison(1e6)(folder)
    assert main([str(folder), "--target", "onnx", "--quant", "fp16", "--out", str(tmp_path / "out")]) == 5
    assert f"tensor '{GATE}' row 3 does not fit F16" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_strict_refuses_fallbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from support.checkpoints import make_checkpoint, moe_config

    folder = make_checkpoint(tmp_path / "model", moe_config(moe_intermediate_size=80))
    arguments = [str(folder), "--target", "onnx", "--quant", "q4", "--out", str(tmp_path / "out"), "--no-validate"]
    assert main([*arguments, "--strict"]) == 2
    assert "rows of 80 are not a multiple of the block of 32" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert main(arguments) == 0
