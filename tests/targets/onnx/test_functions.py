"""What a runtime without one of our younger operators runs instead computes the same as the operator's kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.blocks import Norm
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.onnx.builder import IR_VERSION, MICROSOFT, OPSETS, GraphBuilder
from lfm_convert.targets.onnx.functions import causal_conv, norm_heads
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BATCH = 2
Shapes = dict[str, list[int | str]]


def run_both(
    build: Callable[[GraphBuilder], object], inputs: dict[str, np.ndarray], shapes: Shapes
) -> list[list[np.ndarray]]:
    """Results with the kernel, and with the function: an operator of a domain nobody knows leaves only that."""
    kind = onnx.TensorProto.FLOAT
    value, results = onnx.helper.make_tensor_value_info, []
    for domain in (MICROSOFT, "nobody"):
        b = GraphBuilder(kind)
        build(b)
        for each in [*b.functions, *b.nodes]:
            each.domain = domain if each.domain == MICROSOFT else each.domain
        outputs = [value(name, kind, shape) for name, shape in shapes.items()]
        proto = onnx.helper.make_model(
            onnx.helper.make_graph(
                b.nodes,
                "one",
                [value(name, kind, x.shape) for name, x in inputs.items()],
                outputs,
                initializer=b.inline,
            ),
            functions=b.functions,
            opset_imports=[onnx.helper.make_opsetid(*each) for each in {**OPSETS, domain: 1}.items()],
            ir_version=IR_VERSION,
        )
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, inputs))
    return results


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("width", [2, 3, 7])
def test_causal_conv(length: int, width: int) -> None:
    channels = 128
    rng = np.random.default_rng(width)
    inputs = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "x": (BATCH, channels, length), "kernel": (channels, 1, width), "past": (BATCH, channels, width),
        }.items()
    }  # fmt: skip

    def build(b: GraphBuilder) -> None:
        y = causal_conv(b, "x", "kernel", width=width, n_channels=channels, past="past", present="present")
        b.op("Identity", y, output="y")

    shapes: Shapes = {"y": [BATCH, channels, length], "present": [BATCH, channels, width]}
    (y, present), (function_y, function_present) = run_both(build, inputs, shapes)
    seen = np.concatenate([inputs["past"], inputs["x"]], axis=2)
    windows = np.lib.stride_tricks.sliding_window_view(seen[:, :, 1:], width, axis=2)
    np.testing.assert_allclose(y, (windows * inputs["kernel"]).sum(axis=-1), atol=1e-6)
    np.testing.assert_allclose(function_y, y, atol=1e-6)
    np.testing.assert_array_equal(present, seen[:, :, -width:])
    np.testing.assert_array_equal(function_present, present)


@pytest.mark.parametrize("length", [1, 7])
def test_norm_heads(length: int) -> None:
    n, head_dim, norm = 6, 32, Norm(1e-5)
    rng = np.random.default_rng(n)
    x = rng.standard_normal((BATCH, length, n * head_dim)).astype(np.float32)
    gains = rng.standard_normal((n, head_dim)).astype(np.float32)

    def build(b: GraphBuilder) -> None:
        b.op("Identity", norm_heads(b, "x", "gains", n_heads=n, head_dim=head_dim, norm=norm), output="y")

    (y,), (function_y,) = run_both(build, {"x": x, "gains": gains}, {"y": list(x.shape)})
    heads = x.reshape(BATCH, length, n, head_dim)
    mean_square = (heads * heads).mean(axis=-1, keepdims=True) + norm.eps
    np.testing.assert_allclose(y, (heads / np.sqrt(mean_square) * gains).reshape(x.shape), atol=1e-5)
    np.testing.assert_allclose(function_y, y, atol=1e-5)


def test_blocks_of_other_sizes_do_without_the_operator() -> None:
    """A graph defines a function once: what its sizes do not fit is written out, and computes the same."""
    rng, norm = np.random.default_rng(0), Norm(1e-5)
    inputs = {f"x{n}": rng.standard_normal((1, 3, n * 16)).astype(np.float32) for n in (2, 4)}
    inputs |= {f"gains{n}": rng.standard_normal((n, 16)).astype(np.float32) for n in (2, 4)}

    def build(b: GraphBuilder) -> None:
        for n in (2, 4):
            normed = norm_heads(b, f"x{n}", f"gains{n}", n_heads=n, head_dim=16, norm=norm)
            b.op("Identity", normed, output=f"y{n}")
        assert [node.op_type for node in b.nodes].count("BranchwiseRMSNorm") == 1

    for results in run_both(build, inputs, {f"y{n}": [1, 3, n * 16] for n in (2, 4)}):
        for n, y in zip((2, 4), results, strict=True):
            heads = inputs[f"x{n}"].reshape(1, 3, n, 16)
            expected = heads / np.sqrt((heads * heads).mean(axis=-1, keepdims=True) + norm.eps) * inputs[f"gains{n}"]
            np.testing.assert_allclose(y, expected.reshape(y.shape), atol=1e-5)


def test_chunks_in_half_precision(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """What a convolution remembers is rounded as what it is given: a prompt in chunks is the whole prompt."""
    artifact = write_artifact(moe_graph, "onnx", "q4f16", tmp_path)
    runner = get_target("onnx").run(artifact, threads=1)
    ids = np.random.default_rng(0).integers(20, moe_graph.config.vocab_size, 96).tolist()
    whole = runner.logits(ids)
    runner.reset()
    chunks = [runner.extend(ids[low:high]) for low, high in itertools.pairwise((0, 1, 3, 48, 96))]
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-3)
