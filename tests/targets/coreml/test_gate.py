"""The whole way: converted, published, run and judged, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main

pytestmark = pytest.mark.peers
pytest.importorskip("coremltools", reason='pip install "lfm-convert[coreml]"')


@pytest.mark.parametrize("kind", ["dense", "moe", pytest.param("lfm3", marks=pytest.mark.slow)])
def test_every_quant_passes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [f"bundled:{kind}", "-t", "coreml", "-q", "fp16,int8,int4,int4-pal", "--context", "1024"]
    assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
    entries = {each["quant"]: each for each in json.loads((out / "lfm-convert.json").read_text())["artifacts"]}
    assert set(entries) == {"fp16", "int8", "int4", "int4-pal"}
    for entry in entries.values():
        assert entry["validation"]["verdict"] == "pass"
        assert entry["validation"]["backend"].startswith(("MIL evaluator", "Core ML"))
        assert any("the Neural Engine leaves to other units" in note for note in entry["notes"])
