"""Reading back: exact for floats, and a sentence for a file that is not what it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.target import Artifact, get_target
from support.artifacts import write_artifact


@pytest.fixture
def artifact(moe_graph: WeightGraph, tmp_path: Path) -> Artifact:
    return write_artifact(moe_graph, "onnx", "fp32", tmp_path)


def test_every_weight_comes_back(moe_graph: WeightGraph, artifact: Artifact) -> None:
    found = get_target("onnx").read(artifact)
    assert set(found) == {(w.role, w.layer) for w in moe_graph.weights()}
    for weight in moe_graph.weights():
        np.testing.assert_array_equal(found[weight.role, weight.layer].read(), weight.view.read())


def test_onnx_library_reads_the_same_values(moe_graph: WeightGraph, artifact: Artifact) -> None:
    model = onnx.load(artifact.path)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    np.testing.assert_array_equal(stored["model.embed_tokens"], moe_graph[next(iter(moe_graph.top))].read())


def test_truncated_data(artifact: Artifact) -> None:
    data = artifact.files[1]
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model\.onnx_data: expected \d+ bytes, found \d+"):
        get_target("onnx").read(artifact)


def test_moved_initializer(artifact: Artifact) -> None:
    model = onnx.load(artifact.path, load_external_data=False)
    moved = next(i for i in model.graph.initializer if i.name == "model.embed_tokens")
    next(e for e in moved.external_data if e.key == "offset").value = "64"
    artifact.path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"initializer 'model\.embed_tokens' is .*: expected"):
        get_target("onnx").read(artifact)


@pytest.mark.parametrize("quant", ["fp32", "q4f16"])
def test_a_manifest_is_enough(moe_graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    """What a plan would say of the model is not asked: its config may be gone."""
    convert(moe_graph, target="onnx", quant=quant, out=tmp_path, validate_after=False)
    (tmp_path / "config.json").unlink()
    (artifact,) = find_artifacts(tmp_path)
    found = get_target("onnx").read(artifact)
    planned = get_target("onnx").read(write_artifact(moe_graph, "onnx", quant, tmp_path / "again"))
    assert set(found) == set(planned)
    for address, view in planned.items():
        np.testing.assert_array_equal(found[address].read(), view.read())


def test_a_graph_that_reads_elsewhere(moe_graph: WeightGraph, tmp_path: Path) -> None:
    convert(moe_graph, target="onnx", quant="q4", out=tmp_path, validate_after=False)
    (artifact,) = find_artifacts(tmp_path)
    model = onnx.load(artifact.path, load_external_data=False)
    moved = next(i for i in model.graph.initializer if i.name == "model.embed_tokens.scales")
    place = next(e for e in moved.external_data if e.key == "offset")
    place.value = str(int(place.value) + 64)
    artifact.path.write_bytes(model.SerializeToString())
    with pytest.raises(
        InputError, match=r"no initializer reads 'model\.embed_tokens\.weight' from onnx/model_q4\.onnx_data"
    ):
        get_target("onnx").read(artifact)


def test_not_onnx(artifact: Artifact) -> None:
    artifact.path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="not an ONNX file"):
        get_target("onnx").read(artifact)
    with pytest.raises(InputError, match="ONNX Runtime refuses it"):
        get_target("onnx").run(artifact, threads=1)
