"""The layers of the house: imports go one way, and the core pulls no heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUB_PACKAGES = ("graph", "quantize", "targets", "validate", "convert")
HEAVY = ("torch", "onnx", "onnxruntime", "mlx", "coremltools", "transformers", "compressed_tensors")

# A module has the rank of its longest prefix, and imports modules of its own rank or a lower one.
RANKS = {
    "graph": 2,
    **dict.fromkeys(("graph.errors", "graph.units", "graph.text", "graph.progress", "graph.json_text"), 0),
    **dict.fromkeys(("graph.dtypes", "graph.files", "graph.grid", "graph.streams", "graph.tensor"), 1),
    "quantize": 3,
    "targets": 4,
    "validate": 5,
    **dict.fromkeys(("convert.destination", "convert.manifest"), 6),
    **dict.fromkeys(("convert.artifacts", "convert.ownership", "convert.bundled"), 7),
    **dict.fromkeys(
        ("convert.pipeline", "convert.provenance", "convert.several", "convert.source", "convert.writing"), 8
    ),
    **dict.fromkeys(
        (
            "convert.calibration",
            "convert.failures",
            "convert.publishing",
            "convert.recipe",
            "convert.statistics",
            "convert.stopping",
            "convert.tuning",
        ),
        8,
    ),
    **dict.fromkeys(("convert.release", "convert.starter"), 9),
    "convert.cli": 10,
    "convert._root": 11,
    "convert._optimum": 11,
    "convert.bundled.making": 11,  # not in the wheel
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `lfm_convert`."""
    found = {}
    for package in SUB_PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def rank(module: str) -> int | None:
    """The rank of a module; None if the table does not know it."""
    prefixes = [prefix for prefix in RANKS if module == prefix or module.startswith(prefix + ".")]
    return RANKS[max(prefixes, key=len)] if prefixes else None


def imported(module: str, path: Path) -> set[str]:
    """Modules of the package that a module imports, anywhere in its text."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module.startswith("convert._root"):
        package = []  # its files are the top of the package
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _from(node, package)
        else:
            continue
        found |= {name.removeprefix("lfm_convert.") for name in names if name.startswith("lfm_convert.")}
    return found


def _from(node: ast.ImportFrom, package: list[str]) -> list[str]:
    """Each name of a from-import with its module, since the name may itself be a module."""
    base = node.module.split(".") if node.module else []
    if node.level:
        base = ["lfm_convert", *package[: len(package) + 1 - node.level], *base]
    return [".".join([*base, alias.name]) for alias in node.names]


MODULES = modules()
# `convert` offers the Python API lazily and lies below everything, so it has no rank of its own.
RANKED = [module for module in MODULES if module != "convert"]


@pytest.mark.parametrize("module", RANKED)
def test_imports_go_down(module: str) -> None:
    own = rank(module)
    if own is None:
        pytest.fail(f"'{module}' is unknown: give it a rank in RANKS")
    above = [name for name in imported(module, MODULES[module]) if (found := rank(name)) is not None and found > own]
    assert not above, f"'{module}' imports from above: {', '.join(above)}"


def test_the_package_of_everything_imports_nothing() -> None:
    below = tuple(f"lfm_convert.{package}." for package in SUB_PACKAGES)
    lines = ["import sys, lfm_convert.convert", f"print([m for m in sys.modules if m.startswith({below!r})])"]
    assert run_python(lines) == "[]"


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("graph.source.a", "from ..errors import X", "graph.errors.X"),
        ("graph.source.a", "from ...quantize.policy import P", "quantize.policy.P"),
        ("graph.source.a", "from ... import targets", "targets"),
        ("graph.source.a", "def f():\n    from lfm_convert.validate import parity", "validate.parity"),
        ("targets.gguf.a", "import lfm_convert.convert.cli.main", "convert.cli.main"),
    ],
)
def test_imports_are_seen(module: str, line: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(line)
    assert imported(module, path) == {expected}


def test_the_core_pulls_no_heavy_library() -> None:
    core = [name for name in MODULES if rank(name) in (0, 1, 2) and not name.endswith("chat_child")]
    lines = [f"import lfm_convert.{name}" for name in ["convert", *core]]
    lines += ["import sys", f"print(sorted(set(sys.modules) & {set(HEAVY)!r}))"]
    assert run_python(lines) == "[]"


def run_python(lines: list[str]) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return done.stdout.strip()
