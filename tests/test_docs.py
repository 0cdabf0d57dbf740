"""What the documentation shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lfm_convert.convert import bundled
from lfm_convert.convert.model.lfm2 import open_graph
from lfm_convert.targets.target import get_target, target_names
from support.artifacts import write_artifact

ROOT = Path(__file__).parents[1]


def _snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["onnxruntime.InferenceSession", "ORTModelForCausalLM"])
def test_onnx_snippet_runs(name: str, tmp_path: Path) -> None:
    graph = open_graph(bundled.path("moe"))
    write_artifact(graph, "onnx", "fp32", tmp_path / "LFM2-350M-ONNX")
    (snippet,) = (text for text in _snippets(ROOT / "docs" / "onnx.md", "python") if name in text)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout) > 10


def test_readme_lists_every_target_and_quant() -> None:
    rows = (ROOT / "README.md").read_text()
    for target in map(get_target, target_names()):
        (row,) = re.findall(rf"^\| `{target.name}` \|(.*)$", rows, re.MULTILINE)
        quants = row.split("|")[0].split(",")
        assert {q.strip() for q in quants} == {policy.name for policy in target.policies}
        assert quants[0].strip() == target.default_quant
        assert (ROOT / "docs" / f"{target.name}.md").is_file()


@pytest.mark.parametrize("page", [*sorted(p.name for p in (ROOT / "docs").glob("*.md")), "../README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for link in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link
