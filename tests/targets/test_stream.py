"""The order in which a conversion reads: that of each file of the source, whatever the order of the artifact."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lfm_convert.convert import convert, writing
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.files import RunningHash
from lfm_convert.graph.source.safetensors import SafetensorsFile
from lfm_convert.targets import stream

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
    for path in _weights(tiny_moe_sharded):
        own = [(start, n_bytes) for file, start, n_bytes in reads if file == path]
        assert own == sorted(own)
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

    def advise(file: int, start: int, n_bytes: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            forgotten[os.fstat(file).st_ino] = n_bytes

    monkeypatch.setattr(RunningHash, "_read_to", read_to)
    monkeypatch.setattr(writing, "fits_in_memory", lambda n_bytes: is_small)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    convert(str(tiny_moe_sharded), target="gguf", quant="Q4_0", out=tmp_path, jobs=1, validate_after=False)
    sizes = {path.stat().st_ino: path.stat().st_size for path in _weights(tiny_moe_sharded)}
    assert n_again < 0.05 * sum(sizes.values())  # headers
    assert {i: n_bytes for i, n_bytes in forgotten.items() if i in sizes} == ({} if is_small else sizes)
    stored = json.loads((tmp_path / "lfm-convert.json").read_text())["source"]["files"]
    assert {file["path"]: file["sha256"] for file in stored} == {
        file["path"]: hashlib.sha256((tiny_moe_sharded / file["path"]).read_bytes()).hexdigest() for file in stored
    }


@pytest.mark.parametrize(
    ("pieces", "order"),
    [
        ([("a", 0, 0), ("a", 1, 3), ("b", 0, 1), ("b", 1, 2)], [0, 1, 2, 3]),
        ([("a", 0, 9), ("a", 1, 0), ("b", 0, 8), ("b", 1, 1)], [9, 0, 8, 1]),
        ([("", 0, 2), ("", 0, 0), ("", 0, 1)], [0, 1, 2]),
    ],
    ids=["files that take turns", "each from its start", "of no known place"],
)
def test_of_several_files_the_one_is_read_that_the_artifact_needs_next(
    pieces: list[tuple[str, int, int]], order: list[int]
) -> None:
    """Pieces are given by file, offset there, and offset in the artifact; their order by the latter."""
    made: list[Any] = [
        SimpleNamespace(source=(file, at), places=(("out", to, 1),), key=str(to)) for file, at, to in pieces
    ]
    assert [piece.places[0][1] for piece in stream._in_order(made)] == order


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_fault_no_other_range_is_begun(jobs: int) -> None:
    begun: list[int] = []

    class Failing(stream._Writer):
        def _write(self, piece: Any) -> None:
            begun.append(piece)
            time.sleep(0.01)
            if len(begun) == 5:
                raise InputError("no such row")

    shared: dict[str, Any] = {"files": {}, "budget": None, "hashes": None, "journal": None}
    with pytest.raises(InputError, match="no such row"):
        stream._write_all(range(500), Failing(run=stream.Execution(jobs=jobs), **shared))  # type: ignore[arg-type]
    assert begun[:5] == [0, 1, 2, 3, 4]
    assert len(begun) < 50


def test_every_range_is_written_once_whatever_the_number_of_workers() -> None:
    written: list[int] = []

    class Noting(stream._Writer):
        def _write(self, piece: Any) -> None:
            written.append(piece)

    shared: dict[str, Any] = {"files": {}, "budget": None, "hashes": None, "journal": None}
    stream._write_all(range(2000), Noting(run=stream.Execution(jobs=8), **shared))  # type: ignore[arg-type]
    assert sorted(written) == list(range(2000))


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
