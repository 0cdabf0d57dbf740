"""The wheel: complete, and whole in an empty environment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("convert", "quantize", "targets", "validate")
WITHOUT_EXTRAS = """
import sys
for name in ("onnx", "onnxruntime", "xllamacpp", "mlx", "torch", "transformers"):
    sys.modules[name] = None  # absent
from lfm_convert.convert.cli.main import run
run()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        ROOT,
    ]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def _tracked() -> set[str]:
    """Files of the sub-packages that git tracks, as paths inside the installed package."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        f"lfm_convert/{name}".replace("lfm_convert/convert/_root/", "lfm_convert/") for name in listed.stdout.split()
    }


def test_every_file_of_the_tree_is_in_the_wheel(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == _tracked()


def test_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With the light dependencies only: plans, and says what an absent runtime needs."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    light = {"filelock", "huggingface_hub", "jinja2", "numpy", "rich", "tokenizers", "typer"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {requirement.split(">=")[0] for requirement in project["dependencies"]} == light
    environment = {"PYTHONPATH": next(p for p in sys.path if p.endswith("site-packages")), "PATH": "/usr/bin:/bin"}

    def lfm_convert(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-c", WITHOUT_EXTRAS, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    planned = lfm_convert("plan", "--target", "gguf", "--quant", "Q4_0")
    assert planned.returncode == 0, planned.stderr
    assert "LFM2-Tiny-MoE-Q4_0.gguf" in planned.stdout
    refused = lfm_convert("plan", "--target", "onnx", "--quant", "q4")
    assert refused.returncode == 6
    assert 'pip install "lfm-convert[onnx]"' in refused.stderr
