"""Bugs in artifacts that real runtimes run, and sound artifacts on which nothing may be raised.

`python benchmarks/planted_bugs.py --clean 20` does the same and prints the table of docs/validation.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lfm_convert.graph.errors import BackendError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.target import get_target
from support.clean_artifacts import clean_failures
from support.planted_check import check_planted
from support.real_bugs import Planted, base_checkpoint, planted_bugs

ROWS = planted_bugs(("gguf", "onnx", "mlx", "executorch", "coreml"))
# In a file and in a graph, for every day; a patched runtime is among the slow ones.
QUICK = ("one expert swapped | gguf Q4_0", "softmax router | onnx q4")
RUNTIMES = ("gguf", "onnx", "mlx", "coreml")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    return base_checkpoint(tmp_path_factory.mktemp("base") / "LFM2-Tiny-MoE")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What planting writes into the environment of workers ends with the test."""
    for name in ("LFM_PLANTED_BUG", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


def _needs(target: str) -> None:
    try:
        missing = get_target(target).missing()
    except BackendError as error:
        missing = str(error)
    if missing:
        pytest.skip(f"{target} is not installed: {missing}")


def _rows() -> list[object]:
    return [pytest.param(row, id=row.id, marks=() if row.id in QUICK else pytest.mark.slow) for row in ROWS]


@pytest.mark.parametrize("planted", _rows())
def test_a_bug_in_a_real_artifact_is_caught_and_named(planted: Planted, base: WeightGraph, tmp_path: Path) -> None:
    _needs(planted.target)
    found = check_planted(planted, base, tmp_path)
    assert found.is_right, (found.caught_by, found.result.message)


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_raised_on_sound_artifacts(seed: int, target: str, tmp_path: Path) -> None:
    _needs(target)
    assert clean_failures(seed, (target,), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_raised_on_sound_pte_files(seed: int, tmp_path: Path) -> None:
    _needs("executorch")
    assert clean_failures(seed, ("executorch",), tmp_path) == []
