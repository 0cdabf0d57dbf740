"""The clients that `make clients` installs: each on every variant, the page's JavaScript, and genai's config."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clients.table import BROWSERS, CLIENTS, HERE, INSTALLED, Client
from lfm_convert.convert import bundled, convert
from lfm_convert.graph.graph import WeightGraph

ROOT = Path(__file__).parents[3]
NODE_MODULES = ROOT / ".clients" / "tfjs-4.3.1" / "node_modules"


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("client", [*CLIENTS, *BROWSERS], ids=lambda client: client.name)
def test_client_runs_every_variant(client: Client) -> None:
    """fp32 gives the checkpoint's own tokens, dense and mixture; every other variant runs."""
    if client.folder and not (INSTALLED / client.folder).exists():
        pytest.skip(f"{client.name} is not installed: make clients")
    if client in BROWSERS and not Path("/usr/bin/chromium-headless-shell").exists():
        pytest.skip("apt-get install --no-install-recommends chromium-headless-shell")
    command = [sys.executable, str(HERE / "table.py"), "--browser", "--only", client.name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peers
@pytest.mark.skipif(not NODE_MODULES.exists(), reason="Transformers.js is not installed: make clients")
def test_javascript_snippet_runs(tmp_path: Path) -> None:
    convert(
        f"{bundled.path('dense')}", target="onnx", quant="q4", out=tmp_path / "LFM2-350M-ONNX", validate_after=False
    )
    (snippet,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), re.DOTALL)
    (tmp_path / "snippet.mjs").write_text(snippet)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES.resolve())
    done = subprocess.run(["node", "snippet.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) > 10


def test_genai_is_pointed_at_the_best_graph_of_the_folder(dense_graph: WeightGraph, tmp_path: Path) -> None:
    for quant, expected in (("fp16", "model_fp16"), ("fp32", "model"), ("q4", "model_q4"), ("q8", "model_q4")):
        convert(dense_graph, target="onnx", quant=quant, out=tmp_path, validate_after=False)
        config = json.loads((tmp_path / "genai_config.json").read_text())
        assert config["model"]["decoder"]["filename"] == f"onnx/{expected}.onnx"
    assert config["model"]["decoder"]["inputs"]["past_conv_names"] == "past_conv.%d"
    assert config["model"]["decoder"]["conv_cache_size"] == 3
