"""An importance matrix steers what `--refine` searches for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.imatrix import read_importance
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact


@pytest.fixture(scope="module")
def imatrix(tiny_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    (folder / "text.txt").write_text("Numbers are read from left to right. " * 60)
    arguments = ["calibrate", str(tiny_moe), "--text", str(folder / "text.txt"), "-o", str(folder / "imatrix.gguf")]
    assert main(arguments) == 0
    return folder / "imatrix.gguf"


def test_weighted_error_is_lower(moe_graph: WeightGraph, imatrix: Path, tmp_path: Path) -> None:
    target = get_target("mlx")
    address = (Role.ATTN_Q, 1)
    weights = read_importance(imatrix).of_weight(address, moe_graph.layers[1][Role.ATTN_Q].shape)
    assert weights is not None
    errors = []
    for name, options in (("plain", {}), ("weighed", {"imatrix": str(imatrix)})):
        artifact = write_artifact(moe_graph, target.with_options({"refine": True, **options}), "3bit", tmp_path / name)
        difference = target.read(artifact)[address].read() - moe_graph.layers[1][Role.ATTN_Q].read()
        errors.append(float(np.sum(weights * np.square(difference))))
    assert errors[1] < errors[0]


def test_needs_refine(moe_graph: WeightGraph, imatrix: Path) -> None:
    with pytest.raises(UsageError, match="--refine"):
        get_target("mlx").with_options({"imatrix": str(imatrix)}).plan(moe_graph, "4bit")
