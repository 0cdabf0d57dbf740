"""Memory and bytes at a real size: a generated mixture of experts of 1.2 B parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.convert import convert
from support.checkpoints import make_checkpoint, preset
from support.memory import peak_bytes

pytestmark = pytest.mark.slow
LIMIT_MB = 700


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("moe-1.2b") / "model", preset("moe-1.2b"), shards=4)


def _hashes(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "lfm-convert.json").read_text())
    return {file["path"]: file["sha256"] for entry in manifest["artifacts"] for file in entry["files"]}


@pytest.mark.parametrize(
    ("target", "quant"), [("gguf", "Q4_0"), ("onnx", "q4f16"), ("coreml", "int4"), ("compressed-tensors", "NVFP4A16")]
)
def test_memory_and_bytes(checkpoint: Path, tmp_path: Path, target: str, quant: str) -> None:
    bare = peak_bytes(tmp_path)
    found = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        options = ["--target", target, "--quant", quant, "--out", out, "--jobs", jobs, "--no-validate"]
        used = (peak_bytes(tmp_path, [checkpoint, *options]) - bare) / 1e6
        assert used < LIMIT_MB, f"{used:.0f} MB above the interpreter"
        found.append(_hashes(out))
    convert(str(checkpoint), target=target, quant=quant, out=tmp_path / "3", range_bytes=1 << 18, validate_after=False)
    assert found[0] == found[1] == _hashes(tmp_path / "3")
