"""Where a model comes from: settings file, current folder, bundled, a hub (a local server), its cache."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lfm_convert.convert import bundled
from lfm_convert.convert.source import find_model
from lfm_convert.graph.errors import InputError, UsageError
from support.hub import COMMIT, environment, serve

REPO = "LiquidAI/LFM2-Local"


def test_without_a_model_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_model(None)
    assert found.name == "LFM2-Tiny-MoE"
    assert "using the bundled LFM2-Tiny-MoE" in (found.note or "")


def test_current_folder_comes_before_the_bundled(tiny_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_moe)
    assert find_model(None).path.resolve() == tiny_moe.resolve()


def test_settings_come_first(tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lfm-convert.toml").write_text(f'model = "{tiny_moe}"')
    assert find_model(None).path == tiny_moe


@pytest.mark.parametrize("text", ["model = 3", "modle = 'x'", "model =", ""])
def test_malformed_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lfm-convert.toml").write_text(text)
    with pytest.raises(InputError, match=r"lfm-convert\.toml"):
        find_model(None)


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no bundled model 'big': expected moe or dense or lfm3"):
        find_model("bundled:big")
    (tmp_path / "x.onnx").touch()
    with pytest.raises(InputError, match="is a file"):
        find_model(str(tmp_path / "x.onnx"))


@pytest.fixture
def hub(tiny_moe: Path) -> Iterator[str]:
    with serve(tiny_moe, REPO) as endpoint:
        yield endpoint


def _inspect(home: Path, endpoint: str, repo: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lfm_convert", "plan", repo, "--target", "gguf", "--quant", "Q8_0", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home, endpoint), check=False)


def test_hub_then_offline_cache(hub: str, tmp_path: Path) -> None:
    first = _inspect(tmp_path, hub, REPO)
    assert first.returncode == 0, first.stderr
    assert re.search(r"LFM2-Local-\S+-Q8_0\.gguf", first.stdout)
    assert not list(tmp_path.rglob("evil.bin"))
    again = _inspect(tmp_path, "http://127.0.0.1:9", REPO, "--offline")
    assert again.stdout == first.stdout


def test_the_manifest_names_repository_and_commit(hub: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--target", "gguf", "--quant", "F32", "--no-validate", "--out", str(out)]
    command = [sys.executable, "-m", "lfm_convert", "convert", REPO, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path, hub), check=False)
    assert done.returncode == 0, done.stderr
    source = json.loads((out / "lfm-convert.json").read_text())["source"]
    assert (source["repository"], source["revision"]) == (REPO, COMMIT)


def test_hub_failures(hub: str, tmp_path: Path) -> None:
    unknown = _inspect(tmp_path, hub, "LiquidAI/Nothing")
    assert (unknown.returncode, "the hub has no such repository" in unknown.stderr) == (8, True), unknown.stderr
    offline = _inspect(tmp_path, hub, REPO, "--offline")
    assert (offline.returncode, "it is not in the local cache" in offline.stderr) == (8, True), offline.stderr
    unreachable = _inspect(tmp_path, "http://127.0.0.1:9", REPO)
    assert unreachable.returncode == 8, unreachable.stderr
    assert unreachable.stderr.count("\n") == 1


def test_settings_without_a_model_change_nothing(
    tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lfm-convert.toml").write_text("[devices.phone]\nmax_size = '1GB'\n")
    assert find_model(None).path == bundled.path("moe")
