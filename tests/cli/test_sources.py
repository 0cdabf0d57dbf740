"""A GGUF file or an MLX folder where a model is asked for: every command takes it, and says what it was stored as."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.source import find_model


@pytest.fixture(scope="module")
def gguf(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model in Q4_0, alone in a folder; its token table is in Q8_0."""
    folder = tmp_path_factory.mktemp("source")
    done = pipeline.convert(str(tiny_dense), target="gguf", quant="Q4_0", out=folder / "made", validate_after=False)
    return Path(shutil.copy(done.artifacts[0].path, folder / "Tiny-Q4_0.gguf"))


def sentence(text: str) -> str:
    return " ".join(text.split())


def test_a_file_is_converted_compared_and_named(
    gguf: Path,
    few: Path,
    tiny_dense: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        str(gguf),
        "--prompts",
        str(few),
        "--target",
        "gguf",
        "--quant",
        "Q8_0",
        "--json",
        "report.json",
        "--markdown",
        "report.md",
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    said = sentence(capsys.readouterr().err)
    assert "from Q4_0: artifacts are compared with the weights that it decodes to" in said
    assert "of 25 tensors with codes 25 go unchanged: nothing is lost beyond Q4_0" in said
    out = tmp_path / "Tiny-Q4_0-GGUF"
    manifest = json.loads((out / "lfm-convert.json").read_text())
    assert manifest["source"]["quantised_as"] == "Q4_0"
    assert manifest["source"]["files"] == [
        {
            "path": gguf.name,
            "bytes": gguf.stat().st_size,
            "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        }
    ]
    report = json.loads(Path("report.json").read_text())["validation"]
    assert report["model_quantised_as"] == "Q4_0" and report["artifacts"][0]["verdict"] == "pass"
    assert "from Q4\\_0" in Path("report.md").read_text()
    assert main(["validate", str(out), "--prompts", str(few), "--reference", str(gguf)]) == 0
    assert main(["validate", str(out), "--prompts", str(few), "--reference", str(tiny_dense)]) == 3
    assert "made from another checkpoint than" in sentence("".join(capsys.readouterr()))


def test_plan_says_what_is_lost(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(gguf), "--target", "mlx", "--quant", "4bit-g32,4bit", "--json"]) == 0
    same, other = json.loads(capsys.readouterr().out)["plans"]
    assert same["quantised_as"] == other["quantised_as"] == "Q4_0"
    kept = [tensor for tensor in same["tensors"] if tensor.get("unchanged")]
    assert {tensor["encoding"] for tensor in kept} == {"affine4_g32_f16"} and len(kept) == 24
    assert not any(tensor.get("unchanged") for tensor in other["tensors"])
    assert same["notes"][1] == (
        "of 25 tensors with codes 24 go unchanged, 1 is rounded again (1 as affine4_g32_f16), such as "
        "'model.embed_tokens.weight'"
    )


def test_plain_floats_say_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "bundled:dense", "--target", "mlx", "--quant", "4bit", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["plans"]
    assert "quantised_as" not in found and not any("unchanged" in tensor for tensor in found["tensors"])


def test_the_source_is_never_replaced(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copy(gguf, tmp_path / "model.gguf"))
    beside = tmp_path / "notes.txt"
    beside.write_text("mine")
    before = own.read_bytes()
    arguments = [str(own), "--target", "gguf", "--quant", "Q4_0", "--no-validate", "--overwrite", "--outfile", str(own)]
    assert main(arguments) == 2
    assert "model.gguf is the checkpoint's own and would be replaced" in sentence(capsys.readouterr().err)
    assert own.read_bytes() == before
    # what else lies beside the file is not the checkpoint's
    assert main([*arguments[:-1], str(tmp_path / "other.gguf")]) == 0
    assert own.read_bytes() == before and beside.read_text() == "mine"


def test_other_commands(gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(gguf), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "gguf"
    text = tmp_path / "text.txt"
    text.write_text("The harbour wakes before the town does. " * 60)
    assert main(["calibrate", str(gguf), "--text", str(text), "--out", str(tmp_path / "i.gguf")]) == 0
    assert (tmp_path / "i.gguf").is_file()
    recipe = tmp_path / "lfm-convert.toml"
    recipe.write_text(f'model = "{gguf}"\n[[artifacts]]\ntarget = "mlx"\nquants = ["4bit-g32"]\n')
    assert main(["release", str(recipe), "--dry-run"]) == 0
    assert find_model(str(gguf)).path == gguf


def test_a_revision_of_a_file(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(gguf), "--target", "mlx", "--revision", "v2"]) == 2
    assert "is a local file, which has none" in capsys.readouterr().err


def test_a_folder_of_mlx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = pipeline.convert("bundled:moe", target="mlx", quant="4bit", out=tmp_path / "first", validate_after=False)
    folder = first.artifacts[0].path.parent
    arguments = [str(folder), "--target", "mlx", "--quant", "4bit", "--out", str(tmp_path / "second"), "--no-validate"]
    assert main(arguments) == 0
    assert "of 27 tensors with codes 27 go unchanged: nothing is lost beyond MLX 4bit" in sentence(
        capsys.readouterr().err
    )
    manifest = json.loads((tmp_path / "second" / "lfm-convert.json").read_text())
    assert manifest["source"]["quantised_as"] == "MLX 4bit"
    assert [file["path"] for file in manifest["source"]["files"]] == [
        "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
