"""`--onnx-moe qmoe`: the same weights and the same answers from one node a layer, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx.utils
import onnxruntime
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.pipeline import find_artifacts
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.onnx import linear, qmoe
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


_ROUTINGS = pytest.mark.parametrize("fields", [{}, {"routed_scaling_factor": 2.5}, {"norm_topk_prob": False}], ids=str)


def _both(fields: dict, quant: str, folder: Path) -> list[Artifact]:
    """Unrolled and fused."""
    graph = open_graph(make_checkpoint(folder / "checkpoint", moe_config(**fields)))
    return [_write(graph, quant, folder / form, form) for form in ("unrolled", "qmoe")]


@_ROUTINGS
@pytest.mark.parametrize(("quant", "at_most"), [("q8", 1e-6), ("q4", 1e-6), ("q4f16", 1e-2)])
def test_layers_answer_as_unrolled_ones_do(fields: dict, quant: str, at_most: float, tmp_path: Path) -> None:
    """The nodes as they ship: each token of each layer, given what that layer is given in the unrolled graph."""
    unrolled, fused = (artifact.path for artifact in _both(fields, quant, tmp_path))
    whole, other = (onnx.load(path, load_external_data=False) for path in (unrolled, fused))
    layers = [(node.input[0], node.output[0]) for node in other.graph.node if node.op_type == "QMoE"]
    reader_of = {node.input[0]: node.name for node in other.graph.node if node.op_type == "Reshape"}
    read_by = {node.name: node.input[0] for node in whole.graph.node}
    assert len(layers) == 3
    names = [name for x, y in layers for name in (x, read_by[reader_of[y]])]
    values = _run(_with_outputs(whole, *names), unrolled, _prompt(whole))
    for (x, y), given, expected in zip(layers, values[::2], values[1::2], strict=True):
        layer = onnx.utils.Extractor(_with_outputs(other, x, y)).extract_model([x], [y])
        (found,) = _run(layer, fused, {x: given})
        errors, sizes = (np.linalg.norm(v.astype(np.float64), axis=1) for v in (found - expected, expected))
        assert (errors < at_most * sizes).all()


def _with_outputs(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The graph with these activations as its outputs."""
    kind = proto.graph.input[-1].type.tensor_type.elem_type
    proto = copy.deepcopy(proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    return proto


def _prompt(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The prompt, and caches that are empty."""
    ids = np.array([PROMPT])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "num_logits_to_keep": np.array(0)}
    for cache in proto.graph.input[len(feeds) :]:
        tensor = cache.type.tensor_type
        shape = [1 if d.dim_param == "batch_size" else d.dim_value for d in tensor.shape.dim]
        feeds[cache.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return feeds


def _run(proto: onnx.ModelProto, beside: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph whose weights lie beside that file."""
    path = beside.with_name("part.onnx")
    onnx.save(proto, path)
    results: list[np.ndarray] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    return results


def test_graphs_differ_in_experts_only(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """With the test above: what one form has and the other has not is what that test compares."""
    unrolled, fused = (_comparable(_write(moe_graph, "q8", tmp_path / f, f).path) for f in ("unrolled", "qmoe"))
    assert {name for name in fused if name not in unrolled} == {f"/layers.{i}/feed_forward/QMoE" for i in (1, 2, 3)}
    own = {name for name in unrolled if name not in fused}
    assert all("/experts." in name or "/router/" in name or name.endswith("/feed_forward/Mul") for name in own)
    shared = [name for name in fused if name in unrolled]
    assert [unrolled[name] for name in shared] == [fused[name] for name in shared]


def _comparable(path: Path) -> dict[str, tuple]:
    """Nodes by name: constants by value, since their names are numbers, and a layer's sum under one name."""
    graph = onnx.load(path, load_external_data=False).graph
    aliases = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tobytes()
        for tensor in graph.initializer
        if tensor.name.startswith("const_")
    }
    sums = {node.output[0]: "sum" for node in graph.node if node.op_type in ("QMoE", "If")}
    names = {**aliases, **sums}
    return {
        node.name: (
            node.op_type,
            [names.get(name, name) for name in node.input],
            list(node.output),
            str(node.attribute),
        )
        for node in graph.node
    }


@_ROUTINGS
def test_answers_as_unrolled_does_where_activations_are_floats(
    fields: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At level 0 no activation becomes an int8 code, so that a last bit stays a last bit to the end. (q8 has no such level.)"""
    for module in (linear, qmoe):
        monkeypatch.setattr(module, "ACCURACY_LEVEL", 0)
    expected, found = (UNROLLED.run(artifact, threads=1).logits(PROMPT) for artifact in _both(fields, "q4", tmp_path))
    errors = np.linalg.norm(found - expected, axis=1)
    assert (errors < 1e-6 * np.linalg.norm(expected, axis=1)).all()


@_ROUTINGS
@pytest.mark.parametrize(("quant", "at_most"), [("q8", 1e-4), ("q4", 1e-3), ("q4f16", 0.1)])
def test_answers_as_unrolled_does(fields: dict, quant: str, at_most: float, tmp_path: Path) -> None:
    """In q8 and q4 all tokens but one, in which the last bit of an activation may turn an int8 code: that shows as one step."""
    expected, found = (UNROLLED.run(artifact, threads=1).logits(PROMPT) for artifact in _both(fields, quant, tmp_path))
    errors = np.linalg.norm(found - expected, axis=1)
    relative = errors / np.linalg.norm(expected, axis=1)
    if quant == "q4f16":
        assert np.linalg.norm(errors) < at_most * np.linalg.norm(expected)
        assert np.sqrt(np.mean(relative**2)) < at_most
        return
    assert np.linalg.norm(np.delete(errors, errors.argmax())) < at_most * np.linalg.norm(expected)
    assert relative.max() < 5e-3
    assert np.quantile(relative, 0.8) < 1e-6


@_ROUTINGS
@pytest.mark.parametrize(("quant", "at_most"), [("q8", 1e-4), ("q4", 1e-3)])
def test_most_prompts_turn_no_code(fields: dict, quant: str, at_most: float, tmp_path: Path) -> None:
    """Most agree to the last bits; prints how many are beyond the bound that the test above has for all tokens but one."""
    runners = [UNROLLED.run(artifact, threads=1) for artifact in _both(fields, quant, tmp_path)]
    prompts = [[1, *np.random.default_rng(seed).integers(14, 512, 24).tolist()] for seed in range(40)]
    answers = [[runner.logits(prompt) for runner in runners] for prompt in prompts]
    errors = np.array([np.linalg.norm(found - expected) / np.linalg.norm(expected) for expected, found in answers])
    print(f"{(errors > at_most).sum()} of {len(errors)} beyond {at_most}")
    assert np.median(errors) < 1e-6


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
