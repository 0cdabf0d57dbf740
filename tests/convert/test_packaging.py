"""The wheel: complete, and whole in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("graph/", "quantize/", "targets/", "validate/", "convert/")
WITHOUT_EXTRAS = """
import sys
for name in ("onnx", "onnxruntime", "xllamacpp", "mlx", "torch", "transformers", "compressed_tensors"):
    sys.modules[name] = None  # absent
from lfm_convert.convert.cli.main import run
run()
"""


def _tree() -> list[str]:
    """Files of the project that git tracks or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clean copy: setuptools keeps what an earlier build left in `build/`."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in _tree():
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    return next(folder.glob("*.whl"))


def _shipped() -> set[str]:
    """Files of the sub-packages, as paths inside the installed package; how the models were made stays behind."""
    names = [name for name in _tree() if name.startswith(PACKAGES) and "/bundled/making/" not in name]
    elsewhere = {"convert/_root/": "lfm_convert/", "convert/_optimum/": "optimum/commands/register/"}
    shipped = {f"lfm_convert/{name}" for name in names if not name.startswith(tuple(elsewhere))}
    for folder, home in elsewhere.items():
        shipped |= {home + name.removeprefix(folder) for name in names if name.startswith(folder)}
    return shipped


def test_every_file_of_the_tree_is_in_the_wheel(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == _shipped()


def test_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With the light dependencies only: plans, and says what an absent runtime needs."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    light = {
        "filelock",
        "huggingface_hub",
        "jinja2",
        "junitparser",
        "numpy",
        "psutil",
        "rich",
        "threadpoolctl",
        "tokenizers",
        "typer",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {requirement.split(">=")[0] for requirement in project["dependencies"]} == light
    environment = {"PYTHONPATH": next(p for p in sys.path if p.endswith("site-packages")), "PATH": "/usr/bin:/bin"}

    def lfm_convert(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-c", WITHOUT_EXTRAS, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    planned = lfm_convert("plan", "--target", "gguf", "--quant", "Q4_0")
    assert planned.returncode == 0, planned.stderr
    assert "LFM2-Tiny-MoE-6x2.0M-Q4_0.gguf" in planned.stdout
    refused = lfm_convert("plan", "--target", "onnx", "--quant", "q4")
    assert refused.returncode == 6
    assert 'pip install "lfm-convert[onnx]"' in refused.stderr
