"""llama.cpp's server as the engine of chat templates: started and stopped many times on a busy machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lfm_convert.graph.graph import WeightGraph
from support.artifacts import write_artifact

pytestmark = pytest.mark.peers
_RENDERS = """
import sys
from pathlib import Path
from lfm_convert.targets.gguf.probes import render_by_server
for _ in range(25):
    assert render_by_server(Path(sys.argv[1]), [[{"role": "user", "content": "hi"}]], [])
"""


def test_a_server_that_ends_at_once_does_end(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """Stopped before its main loop turns, it would turn for ever: so did 3 of 3 processes of 60 renders each."""
    pytest.importorskip("xllamacpp", reason='pip install "lfm-convert[gguf]"')
    artifact = write_artifact(moe_graph, "gguf", "Q8_0", tmp_path)
    command = [sys.executable, "-P", "-c", _RENDERS, str(artifact.path)]
    children = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]
    try:
        assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
