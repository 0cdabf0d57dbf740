"""examples/tour.ipynb: its cells run, one after the other in one interpreter, and pass strict type checks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "examples" / "tour.ipynb").read_text())
SCRIPT = "\n\n".join(cell["source"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")


@pytest.mark.peers
def test_the_cells_run_in_order(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Q8_0.gguf pass" in done.stdout and "Q4_0.gguf fail" in done.stdout
    assert (tmp_path / "tour-out" / "report.html").is_file()


def test_the_cells_are_typed(tmp_path: Path) -> None:
    (tmp_path / "tour.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", tmp_path / "tour.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "tour.py:" not in done.stdout


def test_it_is_a_notebook_without_outputs_of_somebody() -> None:
    """As nbformat 4.5 has it: every cell has an id of its own."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
