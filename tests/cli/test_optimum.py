"""`optimum-cli export lfm-convert` is `lfm-convert convert`: same files, messages and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from lfm_convert.convert.cli.main import app

pytest.importorskip("optimum.commands.base")
pytestmark = pytest.mark.peers


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    script, *arguments = command
    path = Path(sys.executable).parent / script
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False)


def _optimum(model: Path | str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return _run("optimum-cli", "export", "lfm-convert", "--model", str(model), *options, str(out))


def test_writes_the_same_files(tiny_moe: Path, tmp_path: Path) -> None:
    options = ["--target", "onnx", "--quant", "fp16,q4f16", "-j", "1", "--no-validate"]
    theirs = _optimum(tiny_moe, tmp_path / "a", *options)
    ours = _run(sys.executable, "-m", "lfm_convert", "convert", str(tiny_moe), "--out", str(tmp_path / "b"), *options)
    assert ours.returncode == 0, ours.stderr
    assert (theirs.returncode, theirs.stderr) == (0, ours.stderr)
    assert "q4f16" in theirs.stdout
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert Path("onnx/model_q4f16.onnx_data") in files
    for name in files:
        if name.name != "lfm-convert.json":  # holds times
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_refusals(tiny_dense: Path, tmp_path: Path) -> None:
    unknown = _optimum(tiny_dense, tmp_path / "out", "--target", "onnx", "--quant", "q5")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("lfm-convert: ")
    assert unknown.stderr.count("\n") == 1
    missing = _optimum(tmp_path / "nothing", tmp_path / "out", "--target", "onnx")
    assert missing.returncode == 5
    assert "no such folder" in missing.stderr
    without = _optimum(tiny_dense, tmp_path / "out")
    assert (without.returncode, "required: --target" in without.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_repeated_options_and_flags(tiny_dense: Path, tmp_path: Path) -> None:
    options = ["--target", "gguf", "--quant", "Q4_0", "--no-validate", "--pure"]
    options += ["--metadata", "general.name=One", "--metadata", "general.author=Two=3"]
    done = _optimum(tiny_dense, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert b"Two=3" in file.read_bytes()


def test_offers_every_option() -> None:
    shown = _run("optimum-cli", "export", "lfm-convert", "--help").stdout
    command = typer.main.get_command(app).commands["convert"]
    names = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert {name for name in names if f"{name} " not in shown and f"{name}\n" not in shown} == {"--out"}
