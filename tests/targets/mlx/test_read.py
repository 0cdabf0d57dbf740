"""Reading back: exact for floats, and a sentence for a folder that is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.target import Artifact, get_target
from support.artifacts import write_artifact
from support.refusals import refused


@pytest.fixture
def artifact(moe_graph: WeightGraph, tmp_path: Path) -> Artifact:
    return write_artifact(moe_graph, "mlx", "8bit", tmp_path)


def test_every_weight_comes_back(moe_graph: WeightGraph, tmp_path: Path) -> None:
    found = get_target("mlx").read(write_artifact(moe_graph, "mlx", "bf16", tmp_path))
    assert set(found) == {(w.role, w.layer) for w in moe_graph.weights()}
    for weight in moe_graph.weights():
        np.testing.assert_array_equal(found[weight.role, weight.layer].read(), weight.view.read())


@pytest.mark.parametrize("quant", ["8bit", "3bit-g32", "5bit-g128", "mxfp8", "nvfp4", "mixed_4_8"])
def test_what_was_encoded_comes_back(moe_graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    target = get_target("mlx")
    found = target.read(write_artifact(moe_graph, "mlx", quant, tmp_path))
    for tensor in target.plan(moe_graph, quant).tensors:
        rows = tensor.view.rows(0, tensor.view.n_rows)
        expected = tensor.encoding.decode(*tensor.encoding.encode(rows))
        np.testing.assert_array_equal(found[tensor.role, tensor.layer].rows(0, len(rows)), expected)


def test_truncated(artifact: Artifact) -> None:
    weights = artifact.path.with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with refused("model.safetensors", "truncated"):
        get_target("mlx").run(artifact, threads=1)


def _set(artifact: Artifact, key: str, value: Any) -> None:
    config = json.loads(artifact.path.read_text())
    config["quantization"][key] = value
    artifact.path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("bits", 7, "'model.embed_tokens' has mode affine, 7 bits, groups of 64 and BF16 scales"),
        ("bits", 4, "array 'model.embed_tokens.weight' is U32 [512, 32]: expected U32 [512, 16]"),
        ("mode", "mxfp4", "array 'model.embed_tokens.weight' is U32 [512, 32]: expected U32 [512, 16]"),
        ("model.embed_tokens", 3, "'model.embed_tokens' has mode None, None bits"),
    ],
    ids=["unknown-bits", "other-bits", "other-mode", "no-object"],
)
def test_settings_that_do_not_fit(artifact: Artifact, key: str, value: Any, sentence: str) -> None:
    _set(artifact, key, value)
    with refused(sentence):
        get_target("mlx").read(artifact)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            b'"model.embedding_norm.weight"',
            b'"model.embedding_nora.weight"',
            "'model.embedding_norm.weight' is missing",
        ),
        (
            b'"model.layers.0.conv.in_proj.biases"',
            b'"model.layers.0.conv.in_proj.biaseS"',
            "in_proj.biases' is missing",
        ),
        (
            b'"model.layers.0.conv.in_proj.scales"',
            b'"model.layers.0.conv.in_proj.scaleS"',
            "in_proj.weight' is U32 and has no scales",
        ),
    ],
    ids=["float", "biases", "scales"],
)
def test_renamed_array(artifact: Artifact, old: bytes, new: bytes, sentence: str) -> None:
    weights = artifact.path.with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes().replace(old, new))
    index = weights.with_name("model.safetensors.index.json")
    index.write_bytes(index.read_bytes().replace(old, new))
    with refused(sentence):
        get_target("mlx").read(artifact)
