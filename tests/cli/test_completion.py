"""What a shell's completion is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lfm-convert rel", {"release"}),
        ("lfm-convert convert --targ", {"--target"}),
        ("lfm-convert convert --target co", {"coreml", "compressed-tensors"}),
        ("lfm-convert convert --target onnx --quant q4", {"q4", "q4_mixed", "q4f16"}),
    ],
)
def test_completion(line: str, told: set[str]) -> None:
    words = line.split()
    environment = {
        **os.environ,
        "_LFM_CONVERT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "lfm_convert"], env=environment, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == told, done.stderr
