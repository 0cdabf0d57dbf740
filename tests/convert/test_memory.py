"""Memory and bytes at a real size: a generated mixture of experts of 1.2 B parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lfm_convert.convert import convert
from support.checkpoints import make_checkpoint, preset

pytestmark = pytest.mark.slow
LIMIT_MB = 700


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("moe-1.2b") / "model", preset("moe-1.2b"), shards=4)


def _rss_mb(command: list[object]) -> float:
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


def _hashes(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "lfm-convert.json").read_text())
    return {file["path"]: file["sha256"] for entry in manifest["artifacts"] for file in entry["files"]}


@pytest.mark.parametrize(("target", "quant"), [("gguf", "Q4_0"), ("onnx", "q4f16")])
def test_memory_and_bytes(checkpoint: Path, tmp_path: Path, target: str, quant: str) -> None:
    bare = _rss_mb([sys.executable, "-c", "pass"])
    found = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        command = [sys.executable, "-m", "lfm_convert", checkpoint, "--target", target, "--quant", quant]
        used = _rss_mb([*command, "--out", out, "--jobs", jobs, "--no-validate"]) - bare
        assert used < LIMIT_MB, f"{used:.0f} MB above the interpreter"
        found.append(_hashes(out))
    convert(str(checkpoint), target=target, quant=quant, out=tmp_path / "3", range_bytes=1 << 18, validate_after=False)
    assert found[0] == found[1] == _hashes(tmp_path / "3")
