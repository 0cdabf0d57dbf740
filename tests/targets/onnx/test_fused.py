"""`--onnx-moe qmoe`: the same weights and the same answers from one node a layer, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.errors import UsageError
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.convert.model.lfm2 import open_graph
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.targets.target import Artifact, get_target
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT

UNROLLED, FUSED = get_target("onnx"), get_target("onnx").with_options({"onnx_moe": "qmoe"})

pytestmark = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31), reason="QMoE graphs need ONNX Runtime 1.31"
)


def _write(graph: WeightGraph, quant: str, folder: Path, form: str) -> Artifact:
    convert(graph, target="onnx", quant=quant, out=folder, options={"onnx_moe": form}, validate_after=False)
    (artifact,) = find_artifacts(folder)
    return artifact


@pytest.mark.parametrize("quant", ["q8", "q4", "q4_mixed", "q4f16"])
def test_reads_back_what_unrolled_stores(moe_graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    unrolled = UNROLLED.read(_write(moe_graph, quant, tmp_path / "unrolled", "unrolled"))
    fused = UNROLLED.read(_write(moe_graph, quant, tmp_path / "fused", "qmoe"))
    assert set(fused) == set(unrolled)
    for address, view in unrolled.items():
        np.testing.assert_array_equal(fused[address].read(), view.read())
        np.testing.assert_array_equal(fused[address].rows(0, view.n_rows // 3), view.rows(0, view.n_rows // 3))


@pytest.mark.parametrize("fields", [{}, {"routed_scaling_factor": 2.5}, {"norm_topk_prob": False}], ids=str)
@pytest.mark.parametrize(("quant", "at_most"), [("q8", 1e-4), ("q4", 1e-3), ("q4f16", 0.1)])
def test_answers_as_unrolled_does(fields: dict, quant: str, at_most: float, tmp_path: Path) -> None:
    """In q8 and q4 all tokens but one, in which the last bit of an activation may turn an int8 code: that shows as one step."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", moe_config(**fields)))
    expected, found = (
        UNROLLED.run(_write(graph, quant, tmp_path / form, form), threads=1).logits(PROMPT)
        for form in ("unrolled", "qmoe")
    )
    errors = np.linalg.norm(found - expected, axis=1)
    if quant == "q4f16":
        assert np.linalg.norm(errors) < at_most * np.linalg.norm(expected)
        return
    worst = errors.argmax()
    assert np.linalg.norm(np.delete(errors, worst)) < at_most * np.linalg.norm(expected)
    assert errors[worst] < 5e-3 * np.linalg.norm(expected[worst])
    assert np.median(errors / np.linalg.norm(expected, axis=1)) < 1e-6


@pytest.mark.parametrize(("form", "runtime"), [("unrolled", "1.24"), ("qmoe", "1.31")])
def test_manifest_says_which_runtime(moe_graph: WeightGraph, form: str, runtime: str, tmp_path: Path) -> None:
    artifact = _write(moe_graph, "q4", tmp_path, form)
    nodes = onnx.load(artifact.path, load_external_data=False).graph.node
    assert [n.op_type for n in nodes].count("QMoE") == (3 if form == "qmoe" else 0)
    (entry,) = json.loads((tmp_path / "lfm-convert.json").read_text())["artifacts"]
    assert f"ONNX Runtime {runtime}" in entry["notes"][0]
    assert entry["options"] == ({"onnx_moe": "qmoe"} if form == "qmoe" else {})


@pytest.mark.parametrize(
    ("quant", "fields"),
    [("fp32", {}), ("fp16", {}), ("q4", {"moe_intermediate_size": 48})],
    ids=["fp32", "fp16", "expert-size"],
)
def test_experts_it_cannot_take(quant: str, fields: dict, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, moe_config(**fields)), weights=False)
    with pytest.raises(
        UsageError, match=r"QMoE takes experts of 4 or 8 bits .* multiples of 32; layer 1 has .*F(32|16)$"
    ):
        FUSED.plan(graph, quant)


def test_dense_model(dense_graph: WeightGraph) -> None:
    with pytest.raises(UsageError, match="a dense model has no experts"):
        FUSED.plan(dense_graph, "q4")


def test_unknown_form(moe_graph: WeightGraph) -> None:
    with pytest.raises(UsageError, match="--onnx-moe is 'loop': expected one of unrolled, qmoe"):
        UNROLLED.with_options({"onnx_moe": "loop"}).plan(moe_graph, "q4")


def test_head_size_it_cannot_rotate(tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, dense_config(head_dim=24)), weights=False)
    with pytest.raises(UsageError, match="head_dim is 24; GroupQueryAttention rotates heads of a multiple of 16"):
        UNROLLED.plan(graph, "q4")
