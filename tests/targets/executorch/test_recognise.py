"""Programs without a manifest: told by their header, run by their methods; what weights they hold is not told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_convert.targets.executorch.recognise import recognise
from lfm_convert.targets.target import NotJudged, get_target

from .conftest import Exported

TARGET = get_target("executorch")


@pytest.mark.parametrize(
    ("name", "quant", "class_name"),
    [
        ("LFM2-350M-8da4w.pte", "8da4w", "q4"),
        ("lfm2_xnnpack_fp32.pte", "fp32", "f32"),
        ("model.pte", "unknown", "q4"),
        ("lfm2-int8.pte", "8da8w", "q8"),
    ],
)
def test_a_program_is_told_by_its_header(tmp_path: Path, name: str, quant: str, class_name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\0ET12" + bytes(56))
    (tmp_path / "notes.pte.txt").write_text("no program")
    (tmp_path / path.with_suffix(".ptd").name).write_bytes(b"data")
    (found,) = recognise(tmp_path)
    assert (found.path, found.quant, found.class_name, len(found.files)) == (path, quant, class_name, 2)
    assert recognise(tmp_path / "notes.pte.txt") == ()
    with pytest.raises(NotJudged, match="which of its constants is which weight"):
        TARGET.read(found)


@pytest.mark.slow
def test_it_runs(exported: Callable[..., Exported]) -> None:
    written = exported("dense", "8da4w")
    (found,) = recognise(written.artifact.path)
    assert found.quant == "8da4w"
    runner = TARGET.run(found, threads=1)
    assert runner.logits([1, 2, 3]).shape == (3, written.graph.config.vocab_size)
