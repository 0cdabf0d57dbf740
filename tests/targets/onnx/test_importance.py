"""An importance matrix steers the search for scales and zero points: dense matrices, and each expert by its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import EXPERTS
from lfm_convert.quantize.imatrix import read_importance
from lfm_convert.targets.target import Artifact, get_target
from support.artifacts import write_artifact


@pytest.fixture(scope="module")
def imatrix(tiny_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    (folder / "text.txt").write_text("Numbers are read from left to right. " * 60)
    arguments = ["calibrate", str(tiny_moe), "--text", str(folder / "text.txt"), "-o", str(folder / "imatrix.gguf")]
    assert main(arguments) == 0
    return folder / "imatrix.gguf"


def write(graph: WeightGraph, quant: str, folder: Path, **options: str) -> Artifact:
    artifact = write_artifact(graph, get_target("onnx").with_options(options), quant, folder)
    return replace(artifact, entry={"options": options})


@pytest.mark.parametrize(("quant", "options"), [("q4", {}), ("q8", {}), ("q4f16", {}), ("q4", {"onnx_moe": "qmoe"})])
def test_weighted_error_is_lower(moe_graph: WeightGraph, imatrix: Path, tmp_path: Path, quant: str, options) -> None:
    """Of every matrix together, and of no matrix more than the rounding of stored scales explains."""
    plain = get_target("onnx").read(write(moe_graph, quant, tmp_path / "plain", **options))
    weighed = get_target("onnx").read(write(moe_graph, quant, tmp_path / "weighed", imatrix=str(imatrix), **options))
    importance, totals = read_importance(imatrix), np.zeros(2)
    for weight in moe_graph.weights():
        columns = importance.of_weight((weight.role, weight.layer), weight.shape)
        if columns is None:
            continue
        exact = weight.view.read().reshape(len(columns), -1, weight.shape[-1])
        errors = np.array([
            (columns[:, None] * np.square(read[weight.role, weight.layer].read().reshape(exact.shape) - exact)).sum(
                axis=(1, 2), dtype=np.float64
            )
            for read in (plain, weighed)
        ])  # fmt: skip
        assert (errors[1] <= 1.01 * errors[0] + 1e-12).all(), weight
        totals += errors.sum(axis=1)
        if weight.role in EXPERTS and quant == "q4":
            assert errors[1].sum() < errors[0].sum()
    assert totals[1] < 0.98 * totals[0]


def test_manifest_and_reading_do_without_the_file(tiny_moe: Path, imatrix: Path, tmp_path: Path, capsys) -> None:
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(imatrix.read_bytes())
    arguments = [str(tiny_moe), "--target", "onnx", "--quant", "q4,fp32", "--imatrix", str(gone)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--no-validate"]) == 0
    manifest = (tmp_path / "out" / "lfm-convert.json").read_text()
    assert "searched by the importance of columns in gone.gguf" in manifest
    assert "gone.gguf has no importance of model.embed_tokens.weight" in manifest
    assert "--imatrix does not apply to float quants" in manifest
    gone.unlink()
    (q4,) = (artifact for artifact in find_artifacts(tmp_path / "out") if artifact.quant == "q4")
    assert q4.options["imatrix"] == "gone.gguf"
    assert get_target("onnx").read(q4)


def test_another_models_importance(moe_graph: WeightGraph, imatrix: Path, tmp_path: Path) -> None:
    values = imatrix.read_bytes().replace(b"blk.1.attn_output", b"blk.1.attn_wrongs")
    (tmp_path / "other.gguf").write_bytes(values)
    plan = get_target("onnx").with_options({"imatrix": str(tmp_path / "other.gguf")}).plan(moe_graph, "q4")
    assert any("has no importance of" in note and "self_attn.out_proj" in note for note in plan.notes)


def test_not_an_importance_matrix(moe_graph: WeightGraph, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(4))
    with pytest.raises(InputError, match=r"bad\.gguf"):
        get_target("onnx").with_options({"imatrix": str(tmp_path / "bad.gguf")}).plan(moe_graph, "q4")
