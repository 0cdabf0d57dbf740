"""Which llama.cpp a file is given to, and what is said where that one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.graph.errors import BackendError, UsageError
from lfm_convert.targets.gguf import runner, runtimes
from lfm_convert.targets.gguf.runtimes import CHOICE_VARIABLE, WHEEL, WLLAMA, runtime_for
from lfm_convert.targets.gguf.wllama import install
from lfm_convert.targets.gguf.wllama.runner import WllamaRunner
from support.refusals import refused

NPM = "npm install @wllama/wllama@3.13.0 node@24"


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE_VARIABLE, raising=False)


def fake_install(folder: Path, *, wllama: str, node: str) -> None:
    """What npm leaves: the package, and a program that says that version."""
    package = folder / "node_modules/@wllama/wllama"
    program = folder / "node_modules/.bin/node"
    for path in (package, program.parent):
        path.mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": wllama}))
    program.write_text(f"#!/bin/sh\necho {node}\n")
    program.chmod(0o755)


def test_the_wheel_runs_what_it_knows_and_wllama_what_is_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [runtime_for(name) for name in ("lfm2", "lfm2moe", "lfm3")] == [WHEEL, WHEEL, WLLAMA]
    monkeypatch.setenv(CHOICE_VARIABLE, WLLAMA)
    assert runtime_for("lfm2") == WLLAMA
    monkeypatch.setenv(CHOICE_VARIABLE, WHEEL)
    assert runtime_for("lfm3") == WHEEL
    monkeypatch.setenv(CHOICE_VARIABLE, "ollama")
    with refused(f"{CHOICE_VARIABLE}=ollama", "xllamacpp or wllama", error=UsageError):
        runtime_for("lfm2")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert install.missing() == NPM
    with refused("found none", NPM, error=BackendError):
        install.installation()
    fake_install(tmp_path / "old", wllama="3.12.0", node="v24.1.0")
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path / "old"))
    with refused("found 3.12.0", NPM, error=BackendError):
        install.installation()
    fake_install(tmp_path / "node", wllama="3.13.0", node="v20.20.2")
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path / "node"))
    with refused("Node.js 24 or newer", NPM, error=BackendError):
        install.installation()


def test_npm_installs_in_the_working_directory_or_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_install(tmp_path, wllama="3.13.0", node="v26.1.0")
    (tmp_path / "below").mkdir()
    monkeypatch.delenv(install.FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path / "below")
    assert install.installation().package == tmp_path / "node_modules/@wllama/wllama"


def test_either_runtime_is_enough_unless_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "installed_version", lambda: None)
    monkeypatch.setenv(install.FOLDER_VARIABLE, str(tmp_path))
    assert runtimes.missing() == 'pip install "lfm-convert[gguf]"'
    monkeypatch.setenv(CHOICE_VARIABLE, WLLAMA)
    assert runtimes.missing() == NPM
    fake_install(tmp_path, wllama="3.13.0", node="v24.21.0")
    assert runtimes.missing() is None
    monkeypatch.delenv(CHOICE_VARIABLE)
    assert runtimes.missing() is None


def test_a_file_beyond_wllamas_memory_is_told_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(4 << 30)
    with refused(path, "memory ends at 4294967296", error=BackendError):
        WllamaRunner([path], threads=1)
