"""What the documentation shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert import bundled
from lfm_convert.convert.cli.main import ANYWHERE, app
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.options import flag, options_of
from lfm_convert.targets.target import get_target, target_names
from support.artifacts import write_artifact
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(p.name for p in (ROOT / "docs").glob("*.md")), "../README.md"]
_ARGUMENT = re.compile(r'add_argument\(\s*"(--[a-z0-9-]+)"')
# Of optimum-cli, of mlx_lm.generate, of model_signing, of llama.cpp, and what help has of every command.
OTHERS = {
    "--embeddings",
    "--lora",
    "--pooling",
    "--model",
    "--prompt",
    "--trust-remote-code",
    "--use",
    "--signature",
    "--identity",
    "--help",
}
_OF_DASK = {"--local-directory", "--memory-limit", "--nthreads", "--port", "--resources"}


def _snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.peers
@pytest.mark.parametrize("model", ["moe", "lfm3"])
@pytest.mark.parametrize("name", ["onnxruntime.InferenceSession", "ORTModelForCausalLM"])
def test_onnx_snippet_runs(name: str, model: str, tmp_path: Path) -> None:
    graph = open_graph(bundled.path(model))
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


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_are_there(page: str) -> None:
    root: Any = get_command(app)
    known = {
        name for command in (root, *root.commands.values()) for parameter in command.params for name in parameter.opts
    }
    known |= set(ANYWHERE)
    for folder in ("benchmarks", "tests/clients", "tests/support"):
        known |= {name for path in (ROOT / folder).glob("*.py") for name in _ARGUMENT.findall(path.read_text())}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / "docs" / page).read_text()))
    assert named <= known | OTHERS | _OF_DASK, named - known - OTHERS - _OF_DASK


@pytest.mark.parametrize("target", target_names())
def test_a_page_names_every_option_of_its_target(target: str) -> None:
    text = (ROOT / "docs" / f"{target}.md").read_text()
    asked = [flag(name) for name, (_, about) in options_of(get_target(target)).items() if about.is_asked]
    assert [name for name in asked if name not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for link, heading in re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?", path.read_text()):
        assert (path.parent / link).exists(), link
        if heading:
            assert heading in _anchors((path.parent / link).read_text()), (link, heading)


def _anchors(text: str) -> list[str]:
    """The links that GitHub makes of headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_files_of_the_architecture_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = re.findall(r"^\| `(\w+/)` \|.*\| (.*) \|$", text, re.MULTILINE)
    named = [f"{room}{name}" for room, names in rooms for name in re.findall(r"`(\w+\.py)`", names)]
    named += re.findall(r"`(\w+/[\w/]+\.py)`", text)
    assert len(rooms) == 5 and [name for name in named if not (ROOT / name).is_file()] == []


def test_the_house_is_no_larger_than_it_may_be() -> None:
    """Lines of a tensor's way, as .gguf and as .onnx, and files that name a family outside its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "house.py"], capture_output=True, text=True, check=True
    )
    ways = re.findall(r"on the way of one tensor: (\d+)", done.stdout)
    assert len(ways) == 2 and max(map(int, ways)) <= 2500, done.stdout
    assert "files that name a family: 0\n" in done.stdout
