"""Each ecosystem's repository as its clients look for it, and its card's examples run from it as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.publishing.ecosystems import ECOSYSTEMS
from lfm_convert.targets.target import get_target
from support.encoders import make_encoder
from support.published_folders import note_verdicts, validated
from support.publishing_hub import Hub

_QUANTS = {
    "gguf": "Q8_0,F16", "onnx": "q8,fp32", "mlx": "4bit,8bit", "executorch": "8da4w", "coreml": "int4",
    "compressed-tensors": "W4A16,W8A16",
}  # fmt: skip
_COMMON = {"LICENSE", "README.md", "lfm-convert.json", "tokenizer.json", "config.json"}
_LOWERED = Path(__file__).parents[2] / "fixtures" / "artifacts" / "executorch"
_MADE: dict[str, Path] = {}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a licence of its own."""
    from lfm_convert.convert import bundled

    folder = Path(shutil.copytree(bundled.path("dense"), tmp_path_factory.mktemp("source") / "Tiny"))
    (folder / "LICENSE").write_text("LFM Open License v1.0\n")
    card = "---\nlicense: other\nlicense_name: lfm1.0\nlicense_link: LICENSE\n---\n"
    (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a target, made once: of that model, but for ExecuTorch."""

    def make(target: str) -> Path:
        if target not in _MADE:
            folder = tmp_path_factory.mktemp("made") / target
            if target == "executorch":  # whose lowering takes a minute
                shutil.copytree(_LOWERED, folder)
                note_verdicts(folder)
                _MADE[target] = folder
            else:
                _MADE[target] = validated(folder, str(source), target=target, quants=_QUANTS[target])
        return _MADE[target]

    yield make
    _MADE.clear()


def publish(folder: Path, to: str, *options: str) -> int:
    return main(["publish", str(folder), "--to", to, "--base-model", "Acme/Tiny", *options])


def _needs(target: str) -> None:
    missing = get_target(target).missing()
    if missing:
        pytest.skip(missing)


@pytest.mark.parametrize(
    ("target", "repos", "there"),
    [
        ("gguf", ["Acme/Tiny-GGUF"], {"LICENSE", "README.md", "lfm-convert.json"}),
        (
            "onnx",
            ["Acme/Tiny-ONNX"],
            {*_COMMON, "onnx/model.onnx", "onnx/model_quantized.onnx", "tokenizer_config.json"},
        ),
        ("mlx", ["Acme/Tiny-MLX-4bit", "Acme/Tiny-MLX-8bit"], {*_COMMON, "model.safetensors"}),
        ("executorch", ["Acme/moe-ExecuTorch"], {*_COMMON, "moe-8da4w.pte"} - {"LICENSE"}),
        ("coreml", ["Acme/Tiny-CoreML"], {*_COMMON, "model_config.json"}),
        (
            "compressed-tensors",
            ["Acme/Tiny-compressed-tensors-W4A16", "Acme/Tiny-compressed-tensors-W8A16"],
            {*_COMMON, "model.safetensors", "tokenizer_config.json"},
        ),
    ],
)
def test_a_repository_has_what_its_clients_look_for(
    target: str, repos: list[str], there: set[str], hub: Hub, made: Callable[[str], Path], tmp_path: Path
) -> None:
    _needs(target)
    folder = made(target)
    to = "Acme/{model}-{TARGET}-{quant}" if ECOSYSTEMS[target].is_alone else "Acme/{model}-{TARGET}"
    assert publish(folder, to) == 0
    assert sorted(hub.repositories) == repos
    for repo in repos:
        found = hub.repositories[repo].files()
        assert there <= set(found), there - set(found)
        (tmp_path / repo).mkdir(parents=True)
        for name, data in found.items():
            (tmp_path / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / repo / name).write_bytes(data)
        assert main(["verify", str(tmp_path / repo)]) == 0
        listed = json.loads(found["lfm-convert.json"])
        main_files = {entry["main_file"] for entry in listed["artifacts"]}
        assert main_files <= set(found)
        for entry in listed["artifacts"]:
            parts = {part["path"] for tensor in entry["tensors"] for part in tensor.get("parts", ())}
            assert parts <= {file["path"] for file in entry["files"]} <= set(found)


def test_several_targets_of_one_folder(
    hub: Hub, made: Callable[[str], Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _needs("onnx")
    folder = Path(shutil.copytree(made("onnx"), tmp_path / "both"))
    validated(folder, str(source), target="gguf", quants="Q8_0")
    assert publish(folder, "Acme/Tiny") == 2
    assert "artifacts for gguf and onnx" in capsys.readouterr().err
    assert publish(folder, "Acme/{model}-{TARGET}") == 0
    gguf, onnx = (set(hub.repositories[f"Acme/Tiny-{name}"].files()) for name in ("GGUF", "ONNX"))
    assert {name for name in gguf if not name.startswith(".")} == {
        "LICENSE",
        "README.md",
        "Tiny-3.4M-Q8_0.gguf",
        "lfm-convert.json",
    }
    assert "tokenizer.json" in onnx and not any(name.endswith(".gguf") for name in onnx)


def test_artifacts_that_are_repositories_do_not_share_one(
    hub: Hub, made: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(made("mlx"), "Acme/Tiny-MLX") == 2
    assert "write {quant} in the name" in capsys.readouterr().err
    assert publish(made("mlx"), "Acme/Tiny-MLX", "--only", "4bit") == 0


def test_the_users_card_of_an_artifact_that_is_a_repository(
    hub: Hub, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("mlx"), tmp_path / "mlx"))
    mine = "---\nlicense: other\nlicense_name: lfm1.0\nlicense_link: LICENSE\n---\n# mine\n"
    (folder / "Tiny-4bit" / "README.md").write_text(mine)
    assert publish(folder, "Acme/{model}-{quant}") == 0
    assert hub.repositories["Acme/Tiny-4bit"].files()["README.md"].decode() == mine
    assert "# Tiny-8bit" in hub.repositories["Acme/Tiny-8bit"].files()["README.md"].decode()


def test_the_card_of_a_licence_of_its_own(hub: Hub, made: Callable[[str], Path]) -> None:
    assert publish(made("gguf"), "Acme/Tiny-GGUF") == 0
    found = hub.repositories["Acme/Tiny-GGUF"].files()
    assert found["LICENSE"] == b"LFM Open License v1.0\n"
    assert b"license_name: lfm1.0\nlicense_link: LICENSE\n" in found["README.md"]


@pytest.mark.peers
@pytest.mark.parametrize("target", ["gguf", "onnx", "mlx", "executorch"])
def test_the_cards_example_runs(target: str, hub: Hub, made: Callable[[str], Path], tmp_path: Path) -> None:
    _needs(target)
    assert publish(made(target), "Acme/Tiny", "--only", _QUANTS[target].partition(",")[0]) == 0
    _run_example(hub, tmp_path)


@pytest.mark.peers
@pytest.mark.parametrize(("kind", "target"), [("embedding", "gguf"), ("embedding", "onnx"), ("colbert", "onnx")])
def test_the_cards_example_gives_vectors(kind: str, target: str, hub: Hub, tmp_path: Path) -> None:
    _needs(target)
    assert publish(_vectors(tmp_path, kind, target, _QUANTS[target].partition(",")[0]), "Acme/Tiny") == 0
    card = hub.repositories["Acme/Tiny"].files()["README.md"].decode()
    assert "pipeline_tag: sentence-similarity" in card and "| mean cosine |" in card and "| cos 0.9" in card
    assert "KLD" not in card and "Ollama" not in card and "generator" not in card
    _run_example(hub, tmp_path)


def test_the_card_of_a_vector_for_each_token(hub: Hub, tmp_path: Path) -> None:
    assert publish(_vectors(tmp_path, "colbert", "gguf", "Q8_0"), "Acme/Tiny-GGUF") == 0
    card = hub.repositories["Acme/Tiny-GGUF"].files()["README.md"].decode()
    assert "llama-embedding -hf Acme/Tiny-GGUF:Q8_0 --pooling none -p" in card and "```python" not in card


def _vectors(tmp_path: Path, kind: str, target: str, quant: str) -> Path:
    """An artifact of a model that gives vectors, with its verdict."""
    model = make_encoder(tmp_path / "Tiny", kind)
    asked = ["--target", target, "--quant", quant, "--out", str(tmp_path / "out"), "--suite", "smoke"]
    assert main([str(model), *asked]) == 0
    return tmp_path / "out"


def _run_example(hub: Hub, tmp_path: Path) -> None:
    """Fetched from the local hub, in a process that has nothing but the address and a cache of its own."""
    text = hub.repositories["Acme/Tiny"].files()["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env={**kept, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 5
