"""The checker finds what is wrong with a graph before any weight is written, each fault in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.onnx.check import check_nodes
from lfm_convert.targets.target import get_target


@pytest.fixture
def model(moe_graph: WeightGraph) -> Any:
    return onnx.load_model_from_string(get_target("onnx").plan(moe_graph, "q4").details.graph)


def _node(model: Any, op_type: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == op_type)


def _stored(model: Any, ending: str) -> Any:
    return next(i for i in model.graph.initializer if i.name.endswith(ending))


def _expert(model: Any) -> Any:
    branches = (attribute.g.node for attribute in _node(model, "If").attribute)
    return next(node for branch in branches for node in branch if node.op_type == "MatMulNBits")


def _unknown_attribute(model: Any) -> None:
    _node(model, "GroupQueryAttention").attribute.append(onnx.helper.make_attribute("smooth", 1))


def _unknown_operator(model: Any) -> None:
    _node(model, "GroupQueryAttention").op_type = "GroupedAttention"


def _wrong_type(model: Any) -> None:
    _stored(model, ".zero_points").data_type = onnx.TensorProto.INT8


def _no_kernel(model: Any) -> None:
    """BiasSplitGelu is for CUDA only."""
    node = _node(model, "Mul")
    node.domain, node.op_type = "com.microsoft", "BiasSplitGelu"


def _wrong_shape(model: Any) -> None:
    _stored(model, "gate").dims[1] += 1


def _wrong_part(model: Any) -> None:
    _stored(model, "down_proj.scales").dims[0] += 1


def _wrong_expert(model: Any) -> None:
    next(a for a in _expert(model).attribute if a.name == "N").i += 1


FAULTS = {
    _unknown_attribute: "smooth",
    _unknown_operator: "GroupedAttention",
    _wrong_type: r"tensor\(int8\)",
    _no_kernel: "BiasSplitGelu",
    _wrong_shape: "Gemm",
    _wrong_part: r"MatMulNBits_1 of 128 x 256 has parts .*: expected",
    _wrong_expert: r"experts\.0/MatMulNBits of .* has parts",
}


@pytest.mark.parametrize("quant", [policy.name for policy in get_target("onnx").policies])
def test_every_quant_passes(moe_graph: WeightGraph, quant: str) -> None:
    check_nodes(get_target("onnx").plan(moe_graph, quant).details.graph)


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_fault_is_named(model: Any, spoil: Callable[[Any], None]) -> None:
    spoil(model)
    with pytest.raises(ValueError, match=FAULTS[spoil]):
        check_nodes(model.SerializeToString())


def test_data_behind_a_link_is_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(dense_graph, target="onnx", quant="q4", out=out, validate_after=False)
    data = out / "onnx" / "model_q4.onnx_data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"'onnx/model_q4\.onnx_data' is a link to .*elsewhere, outside the folder"):
        find_artifacts(out)
