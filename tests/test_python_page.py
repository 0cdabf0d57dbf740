"""The snippets of docs/python.md: they run, one after the other, and pass strict type checks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


@pytest.mark.peers
def test_the_snippets_run_in_order(tmp_path: Path) -> None:
    for snippet in SNIPPETS:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"
        assert done.stdout or "write_html" in snippet
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "models").glob("*.gguf"))


def test_the_snippets_are_typed(tmp_path: Path) -> None:
    """What mypy says of the package itself under a stricter rule than its own is not theirs."""
    for number, snippet in enumerate(SNIPPETS):
        (tmp_path / f"snippet_{number}.py").write_text(snippet)
    (tmp_path / "snippet_wrong.py").write_text("number: int = 'text'\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        ROOT / "pyproject.toml",
        *tmp_path.glob("*.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (error,) = [line for line in done.stdout.splitlines() if "snippet_" in line]
    assert "snippet_wrong.py:1" in error
