"""The order in which a conversion reads: the source's own, whatever the order of the artifact."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from lfm_convert.convert import convert, writing
from lfm_convert.graph.files import RunningHash
from lfm_convert.graph.source.safetensors import SafetensorsFile

CASES = [("gguf", "Q4_0"), ("onnx", "q4f16"), ("mlx", "8bit")]


@pytest.mark.parametrize(("target", "quant"), CASES)
@pytest.mark.parametrize("range_bytes", [4 << 20, 20_000], ids=["whole matrices", "parts of them"])
def test_weights_are_read_from_start_to_end(
    target: str, quant: str, range_bytes: int, tiny_moe_sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[Path, int, int]] = []
    real = SafetensorsFile._fill

    def fill(self: SafetensorsFile, buffer: memoryview, start: int) -> None:
        reads.append((self.path, start, len(buffer)))
        real(self, buffer, start)

    monkeypatch.setattr(SafetensorsFile, "_fill", fill)
    convert(
        str(tiny_moe_sharded), target=target, quant=quant, out=tmp_path, jobs=1, range_bytes=range_bytes,
        validate_after=False,
    )  # fmt: skip
    assert reads == sorted(reads)
    assert (
        sum(n_bytes for *_, n_bytes in reads) > 0.99 * sum(p.stat().st_size for p in _weights(tiny_moe_sharded)) - 1e5
    )


@pytest.mark.parametrize("is_small", [True, False])
def test_the_source_is_hashed_and_forgotten_once_it_is_read(
    is_small: bool, tiny_moe_sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_again, forgotten = 0, dict[int, int]()
    real = RunningHash._read_to

    def read_to(self: RunningHash, stop: int) -> None:
        nonlocal n_again
        before = self._n_hashed
        real(self, stop)
        n_again += self._n_hashed - before

    monkeypatch.setattr(RunningHash, "_read_to", read_to)
    monkeypatch.setattr(writing, "fits_in_memory", lambda n_bytes: is_small)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, n_bytes, advice: forgotten.update({file: n_bytes}))
    convert(str(tiny_moe_sharded), target="gguf", quant="Q4_0", out=tmp_path, jobs=1, validate_after=False)
    sizes = [path.stat().st_size for path in _weights(tiny_moe_sharded)]
    assert n_again < 0.05 * sum(sizes)  # headers
    assert list(forgotten.values()) == ([] if is_small else sizes)
    stored = json.loads((tmp_path / "lfm-convert.json").read_text())["source"]["files"]
    assert {file["path"]: file["sha256"] for file in stored} == {
        file["path"]: hashlib.sha256((tiny_moe_sharded / file["path"]).read_bytes()).hexdigest() for file in stored
    }


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
